"""From a study to what the report shows of layers: options, costs, the choice with its reasons, and the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from qua2sedimo.formats.text import size_text
from qua2sedimo.options import Option
from qua2sedimo.report.data import GraphNode, LayerChoice
from qua2sedimo.report.text import decimals, number
from qua2sedimo.search import DECIDED, LayerReason
from qua2sedimo.sensitivity import LayerStep, OptionRow, Sensitivity
from qua2sedimo.sensitivity import layer_steps as steps_of
from qua2sedimo.sensitivity.steps import standard_error
from qua2sedimo.sensitivity.tables import option_row
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.choose import why
from qua2sedimo.study.workspace import Workspace


def layer_options(study: Workspace, found: Sensitivity) -> list[OptionRow]:
    """Every option of every layer, in the order of the data flow."""
    return sorted(found.rows, key=lambda row: study.graph.index[row.layer])


def layer_steps(study: Workspace, found: Sensitivity) -> list[LayerStep]:
    """What a bit costs each layer that has options of two sizes, in the order of the data flow.

    Where no fold knows an effect on the objective, scores take its place.
    """
    scores = found.scores.layers
    effects = {
        name: {option: folds or scores[name][option].folds for option, folds in options.items()}
        for name, options in found.effects.items()
    }
    steps = steps_of(study.graph.layers, study.space, effects, exact=False)
    return sorted(steps, key=lambda s: study.graph.index[s.layer.name])


def cost_unit(found: Sensitivity) -> str:
    """The unit of what options cost: the objective's, or "score" where no fold knows an effect on the objective."""
    known = any(folds for options in found.effects.values() for folds in options.values())
    return (found.unit if known else "score") or "of the objective"


def layer_choices(study: Workspace, choice: Choice, found: Sensitivity | None) -> list[LayerChoice]:
    """The chosen options with the reasons: by sensitivities or, without these, by what is expected of the options."""
    known = found is not None or study.objective.in_decibels
    because = {reason.layer: reason for reason in why(study, choice)} if known else {}
    unit = study.objective.unit or "score"
    rows = {(row.layer, row.option): row for row in found.rows} if found else {}
    chosen = []
    for name in sorted(choice.configuration, key=study.graph.index.__getitem__):
        option, layer = choice.configuration[name], study.graph.layers[name]
        row = rows.get((name, str(option))) or option_row(layer, option, study.bank.errors[name][option].relative)
        decided, sentences = "", ""
        if known:
            effects = found.effects[name] if found else _expected(because[name])
            decided = _decided(because[name], unit)
            sentences = _sentences(because[name], effects, cost_unit(found) if found else unit)
        chosen.append(LayerChoice(**asdict(row), shape=layer.shape, decided=decided, reason=sentences))
    return chosen


def _decided(reason: LayerReason, unit: str) -> str:
    """Why the option is not smaller, or not larger, in a few words."""
    if reason.why == "budget" and reason.cheaper is not None:
        return f"{reason.cheaper} would cost {_plain(reason.cost)} {unit}"
    if reason.why == "least" and reason.better is not None:
        return f"smallest; {reason.better} would gain {_plain(reason.gain)} {unit}"
    return DECIDED[reason.why]


def _plain(amount: float) -> str:
    return number(amount, max(1, decimals(amount, 1))) if abs(amount) >= 0.0005 else "less than 0.001"


def _expected(reason: LayerReason) -> dict[Option, tuple[float, ...]]:
    """Of the option and its neighbours, what the objective is expected to be beside the option."""
    found: dict[Option, tuple[float, ...]] = {}
    if reason.option is not None:
        found[reason.option] = (0.0,)
    if reason.cheaper is not None:
        found[reason.cheaper] = (-reason.cost,)
    if reason.better is not None:
        found[reason.better] = (reason.gain,)
    return found


def _sentences(reason: LayerReason, effects: Mapping[Option, tuple[float, ...]], unit: str) -> str:
    """What the next smaller option would have cost, and what the next larger one would have gained."""
    said = []
    if reason.cheaper is not None and reason.option is not None:
        lost = _amount(effects, reason.option, reason.cheaper, unit)
        said.append(f"{reason.cheaper} would save {size_text(reason.saved)} and cost {lost}.")
    if reason.better is not None and reason.option is not None:
        gained = _amount(effects, reason.better, reason.option, unit)
        said.append(f"{reason.better} needs {size_text(reason.needs)} more and would gain {gained}.")
    if reason.why == "best":
        said.append("No larger option is expected to be better.")
    if reason.why == "least":
        said.append("No option of this layer is smaller.")
    if reason.why == "constraint":
        said.append("The smaller options were not allowed.")
    if reason.tied:
        said.append(f"Shared with {', '.join(reason.tied)}.")
    return " ".join(said)


def _amount(effects: Mapping[Option, tuple[float, ...]], better: Option, worse: Option, unit: str) -> str:
    """What the objective is expected to lose from one option to another, with its standard error over folds."""
    folds = np.array(effects[better]) - np.array(effects[worse])
    if not len(folds):
        return "an unknown amount"
    mean, spread = float(folds.mean()), standard_error(folds.tolist())
    digits = max(1, decimals(spread if 0 < spread < np.inf else mean))
    within = f" ± {number(spread, digits)}" if spread < np.inf else ""
    return f"{number(mean, digits)}{within} {unit}"


def graph_nodes(study: Workspace) -> list[GraphNode]:
    """The graph; a place where data meet belongs to the block of its latest input."""
    nodes: list[GraphNode] = []
    for node in study.graph.nodes:
        block = study.graph.layers[node.name].block if node.kind == "layer" else nodes[max(node.inputs)].block
        nodes.append(GraphNode(node.name, node.kind, block, node.inputs))
    return nodes
