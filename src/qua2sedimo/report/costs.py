"""What it costs a layer to go down a bit, from what the folds expect of its options."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qua2sedimo.report.data import LayerScore
from qua2sedimo.sensitivity.steps import Rated, step


@dataclass(frozen=True)
class LayerCost:
    """What the objective loses when a layer goes from ``better`` (about 4 bits a weight) to ``worse`` (about 3).

    ``exact`` is false when the layer has no option in one of the two ranges; then the cost is that
    between the nearest options it has, per bit. ``spread`` is the standard error of the difference within each fold.
    Where folds are not given, scores stand in for the objective and their spreads are taken as independent.
    """

    layer: str
    operation: str
    block: str
    block_index: int | None
    better: str
    worse: str
    cost: float
    spread: float
    exact: bool


def layer_costs(scores: Iterable[LayerScore]) -> list[LayerCost]:
    """The cost of each layer that has two options of different size, in the order of the scores."""
    by_layer: dict[str, list[LayerScore]] = {}
    for score in scores:
        if math.isfinite(score.score):
            by_layer.setdefault(score.layer, []).append(score)
    costs = (_cost(options) for options in by_layer.values())
    return [cost for cost in costs if cost is not None]


def _cost(options: list[LayerScore]) -> LayerCost | None:
    """The step of :mod:`qua2sedimo.sensitivity.steps`."""
    by_name = {option.option: option for option in options}
    found = step(Rated(o.option, o.average_bits, o.folds or (o.score,)) for o in options)
    if found is None:
        return None
    better, worse = by_name[found.better], by_name[found.worse]
    bits = 1.0 if found.exact else better.average_bits - worse.average_bits
    paired = len(found.folds) > 1
    return LayerCost(
        layer=better.layer,
        operation=better.operation,
        block=better.block,
        block_index=better.block_index,
        better=found.better,
        worse=found.worse,
        cost=found.cost,
        spread=found.spread if paired else math.hypot(better.spread, worse.spread) / bits,
        exact=found.exact,
    )


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct names as they first appear, but ``input`` first and ``output`` last."""
    distinct = list(dict.fromkeys(names))
    return sorted(distinct, key=lambda name: {"input": 0, "output": 2}.get(name, 1))
