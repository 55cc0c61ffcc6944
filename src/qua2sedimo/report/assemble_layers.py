"""From a study to what the report says of layers: their options, the choice and its reasons, and the graph."""

from __future__ import annotations

import math

import numpy as np

from qua2sedimo.report.data import GraphNode, LayerChoice, LayerScore
from qua2sedimo.report.text import number, size_text
from qua2sedimo.search import DECIDED, LayerReason
from qua2sedimo.sensitivity import Sensitivity
from qua2sedimo.sensitivity.effects import Effects
from qua2sedimo.sensitivity.steps import standard_error
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.choose import why
from qua2sedimo.study.workspace import Workspace


def in_data_order(study: Workspace) -> list[str]:
    """The quantized units in the order in which data reach them."""
    return sorted(study.space.layers, key=study.graph.index.__getitem__)


def layer_scores(study: Workspace, found: Sensitivity) -> list[LayerScore]:
    """Every option of every layer. Where no fold has an effect on the objective, the scores' folds stand for it."""
    rows = {(row.layer, row.option): row for row in found.rows}
    scores = []
    for name in in_data_order(study):
        for option, s in found.scores.layers[name].items():
            row = rows[name, str(option)]
            scores.append(
                LayerScore(
                    name, row.operation, row.block, row.block_index, row.option, row.method, row.bits,
                    row.average_bits, s.score, s.spread, found.effects[name][option] or s.folds, row.nbytes,
                    row.relative_mse, row.cost, row.cost_spread,
                )
            )  # fmt: skip
    return scores


def cost_unit(found: Sensitivity) -> str:
    """The unit of what options cost: the objective's, or standard deviations of scores where no fold knows it."""
    known = any(folds for options in found.effects.values() for folds in options.values())
    return (found.unit if known else "score") or "of the objective"


def layer_choices(study: Workspace, choice: Choice, found: Sensitivity | None) -> list[LayerChoice]:
    """The chosen options, with what decided each; without sensitivities neither scores nor reasons."""
    because = {reason.layer: reason for reason in why(study, choice)} if found else {}
    chosen = []
    for name in in_data_order(study):
        if name not in choice.configuration:
            continue
        option, layer = choice.configuration[name], study.graph.layers[name]
        nbytes = option.nbytes(study.space.shapes[name])
        score, spread, decided, said = math.nan, math.nan, "", ""
        if found:
            s, reason = found.scores.layers[name][option], because[name]
            score, spread, decided = s.score, s.spread, DECIDED[reason.why]
            said = _sentence(reason, found.effects, cost_unit(found))
        chosen.append(
            LayerChoice(
                name, layer.operation, layer.block, layer.shape, layer.weights, str(option), nbytes,
                8 * nbytes / layer.weights, study.bank.errors[name][option].relative_mse, score, spread, decided, said,
            )
        )  # fmt: skip
    return chosen


def _sentence(reason: LayerReason, effects: Effects, unit: str) -> str:
    """What the next smaller option would have cost, what the next larger would have brought."""
    said = []
    if reason.cheaper is not None:
        lost = _change(effects, reason.layer, reason.option, reason.cheaper)
        said.append(f"{reason.cheaper} would save {size_text(reason.saved)} and cost {_amount(lost, unit)}.")
    if reason.better is not None:
        gained = _change(effects, reason.layer, reason.better, reason.option)
        said.append(f"{reason.better} needs {size_text(reason.needs)} more and would bring {_amount(gained, unit)}.")
    if reason.why == "best":
        said.append("No larger option is expected to be better.")
    if reason.why == "least":
        said.append("No option of this layer is smaller.")
    if reason.why == "constraint":
        said.append("The smaller options were not allowed.")
    if reason.tied:
        said.append(f"Shared with {', '.join(reason.tied)}.")
    return " ".join(said)


def _change(effects: Effects, layer: str, better: object, worse: object) -> np.ndarray:
    """Of each fold: what it expects the objective to lose from one option to another."""
    options = {str(option): folds for option, folds in effects[layer].items()}
    return np.array(options[str(better)]) - np.array(options[str(worse)])


def _amount(folds: np.ndarray, unit: str) -> str:
    if not len(folds):
        return "an unknown amount"
    mean, spread = float(folds.mean()), standard_error(folds.tolist())
    size = spread if 0 < spread < np.inf else abs(mean)
    digits = min(5, max(1, 1 - int(np.floor(np.log10(size))))) if size > 0 else 2
    within = f" ± {number(spread, digits)}" if spread < np.inf else ""
    return f"{number(mean, digits)}{within} {unit}"


def graph_nodes(study: Workspace) -> list[GraphNode]:
    """The graph; a place where data meet belongs to the block of its latest input."""
    nodes: list[GraphNode] = []
    for node in study.graph.nodes:
        block = study.graph.layers[node.name].block if node.kind == "layer" else nodes[max(node.inputs)].block
        nodes.append(GraphNode(node.name, node.kind, block, node.inputs))
    return nodes
