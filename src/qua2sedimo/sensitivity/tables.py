"""Sensitivity as tables: a row for each option of each layer, and what groups of rows look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.formats.tabular import write_rows
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.sensitivity.effects import Effects
from qua2sedimo.sensitivity.scores import Scores
from qua2sedimo.sensitivity.steps import Rated, Step, standard_error, step

#: By what rows are grouped.
GROUPINGS = ("layer", "operation", "block", "block_index", "stage")


@dataclass(frozen=True)
class OptionRow:
    """One option of one layer.

    ``score`` is the sum over folds, without unit; ``cost`` what the objective is expected to lose from the layer's best
    option to this one, in the objective's unit; each with its standard error over folds.
    """

    layer: str
    operation: str
    block: str
    block_index: int | None
    stage: str
    weights: int
    option: str
    method: str
    bits: int
    average_bits: float
    nbytes: int
    relative_mse: float
    score: float
    score_spread: float
    cost: float
    cost_spread: float


@dataclass(frozen=True)
class LayerStep:
    """A layer and what going from about 4 to about 3 bits costs it, in the objective's unit."""

    layer: WeightLayer
    step: Step


@dataclass(frozen=True)
class Distribution:
    """Least, quartiles and largest of a group's values; ``outliers`` lie 1.5 quartile ranges outside the quartiles.

    ``spread`` is the mean of the values' standard errors over folds.
    """

    name: str
    count: int
    low: float
    q1: float
    median: float
    q3: float
    high: float
    outliers: tuple[str, ...]
    spread: float


@dataclass(frozen=True)
class GroupRow(Distribution):
    """The distribution of a ``quantity``, "score" or "cost 4 to 3", over one group of the grouping ``by``."""

    quantity: str
    by: str


def option_rows(
    layers: Mapping[str, WeightLayer], space: SearchSpace, bank: Bank, scores: Scores, effects: Effects
) -> list[OptionRow]:
    """The table, in the order of the data."""
    rows = []
    for name in space.layers:
        layer = layers[name]
        best = max(effects[name].values(), key=sum)
        for option in space.options[name]:
            score, lost = scores.layers[name][option], np.array(best) - np.array(effects[name][option])
            costs = (float(lost.mean()), standard_error(lost)) if len(lost) else (math.nan, math.nan)
            error = bank.errors[name][option].relative
            rows.append(option_row(layer, option, error, score.score, score.spread, *costs))
    return rows


def option_row(layer: WeightLayer, option: Option, relative_mse: float, *found: float) -> OptionRow:
    """The row of an option; ``found``: score, cost and their spreads, NaN without a predictor."""
    nbytes = option.nbytes(layer.shape)
    return OptionRow(
        layer.name, layer.operation, layer.block, layer.block_index, layer.stage, layer.weights, str(option),
        option.method, option.bits, 8 * nbytes / layer.weights, nbytes, relative_mse, *(found or (math.nan,) * 4),
    )  # fmt: skip


def layer_steps(
    layers: Mapping[str, WeightLayer], space: SearchSpace, effects: Effects, exact: bool = True
) -> list[LayerStep]:
    """Every layer that has options of about 4 and of about 3 bits, overhead counted, highest cost first.

    Unless ``exact``, also the layers that have options of other sizes; their cost is that of a bit.
    """
    found = []
    for name in space.layers:
        shape, weights = space.shapes[name], layers[name].weights
        made = step(Rated(str(o), 8 * o.nbytes(shape) / weights, folds) for o, folds in effects[name].items())
        if made is not None and (made.exact or not exact):
            found.append(LayerStep(layers[name], made))
    return sorted(found, key=lambda s: -s.step.cost)


def distributions(rows: Sequence[OptionRow], by: str) -> list[Distribution]:
    """Distribution of the scores by ``layer``, ``operation``, ``block``, ``block_index`` or ``stage``."""
    return _distributions(rows, lambda r: (str(getattr(r, by)), r.score, r.score_spread, f"{r.layer} {r.option}"))


def step_distributions(steps: Sequence[LayerStep], by: str) -> list[Distribution]:
    """Distribution over layers of the cost of 4 → 3 bits, highest median first."""
    found = _distributions(steps, lambda s: (str(getattr(s.layer, by)), s.step.cost, s.step.spread, s.layer.name))
    return sorted(found, key=lambda d: -d.median)


def _distributions(items: Iterable[Any], read: Callable[[Any], tuple[str, float, float, str]]) -> list[Distribution]:
    """``read`` gives an item's group, value, standard error and own name; groups come as they first appear."""
    groups: dict[str, list[tuple[float, float, str]]] = {}
    for group, value, spread, own in map(read, items):
        groups.setdefault(group, []).append((value, spread, own))
    found = []
    for name, members in groups.items():
        values = np.array([value for value, _, _ in members])
        low, q1, median, q3, high = (float(v) for v in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
        fence = 1.5 * (q3 - q1)
        outliers = tuple(own for value, _, own in members if not q1 - fence <= value <= q3 + fence)
        mean = float(np.mean([spread for _, spread, _ in members]))
        found.append(Distribution(name, len(members), low, q1, median, q3, high, outliers, mean))
    return found


def grouped(rows: Sequence[OptionRow], steps: Sequence[LayerStep]) -> list[GroupRow]:
    """Distributions of the scores, and of what 4 → 3 bits costs, by layer, operation, block, block index and stage.

    A layer has one step, so there are none by layer.
    """
    found = [GroupRow(**asdict(d), quantity="score", by=by) for by in GROUPINGS for d in distributions(rows, by)]
    return found + [
        GroupRow(**asdict(d), quantity="cost 4 to 3", by=by)
        for by in GROUPINGS[1:]
        for d in step_distributions(steps, by)
    ]


def write_tables(
    rows: Sequence[OptionRow], steps: Sequence[LayerStep], folder: Path, ending: str = "csv"
) -> list[Path]:
    """Leave sensitivity and sensitivity-groups, .csv or .parquet, in ``folder``; their paths."""
    paths = [folder / f"sensitivity.{ending}", folder / f"sensitivity-groups.{ending}"]
    write_rows(OptionRow, rows, paths[0])
    write_rows(GroupRow, grouped(rows, steps), paths[1])
    return paths
