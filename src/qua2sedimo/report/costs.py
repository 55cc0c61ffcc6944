"""What it costs a layer to go down a bit, from the scores of its options."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qua2sedimo.report.data import LayerScore


@dataclass(frozen=True)
class LayerCost:
    """The score a layer loses from ``better`` (about 4 bits a weight) to ``worse`` (about 3).

    ``exact`` is false when the layer has no option in one of the two ranges; then the cost is that
    between the nearest options it has, per bit. ``spread`` takes the two scores' spreads as independent.
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
    four = _best(options, 3.5, 4.5)
    three = _best(options, 2.5, 3.5)
    exact = four is not None and three is not None
    if three is None:
        three = _nearest(options, 3.0, below=four)
    if four is None and three is not None:
        four = _nearest(options, 4.0, above=three)
    if four is None or three is None:
        return None
    bits = 1.0 if exact else four.average_bits - three.average_bits
    return LayerCost(
        layer=four.layer,
        operation=four.operation,
        block=four.block,
        block_index=four.block_index,
        better=four.option,
        worse=three.option,
        cost=(four.score - three.score) / bits,
        spread=math.hypot(four.spread, three.spread) / bits,
        exact=exact,
    )


def _best(options: list[LayerScore], above: float, up_to: float) -> LayerScore | None:
    inside = [option for option in options if above < option.average_bits <= up_to]
    return max(inside, key=lambda option: option.score, default=None)


def _nearest(
    options: list[LayerScore],
    bits: float,
    below: LayerScore | None = None,
    above: LayerScore | None = None,
) -> LayerScore | None:
    """The option nearest in size, and smaller than ``below`` or larger than ``above`` by a tenth of a bit."""
    inside = [
        option
        for option in options
        if (below is None or option.average_bits < below.average_bits - 0.1)
        and (above is None or option.average_bits > above.average_bits + 0.1)
    ]
    return min(inside, key=lambda option: (abs(option.average_bits - bits), -option.score), default=None)


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct names as they first appear, but ``input`` first and ``output`` last."""
    distinct = list(dict.fromkeys(names))
    return sorted(distinct, key=lambda name: {"input": 0, "output": 2}.get(name, 1))
