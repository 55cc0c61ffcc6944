"""A choice explains itself: per layer its option, what the next cheaper one would have cost, and what decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.search.constraints import Allowed, kept_bytes
from qua2sedimo.search.programs import Values

#: For each :attr:`LayerReason.why`, what decided, in words.
DECIDED = {
    "kept": "kept in 16 bits",
    "constraint": "a constraint",
    "least": "nothing smaller",
    "best": "nothing better",
    "budget": "the budget",
}


@dataclass(frozen=True)
class LayerReason:
    """Why a layer has its option.

    ``why``: ``kept`` (asked to stay in 16 bits), ``constraint`` (a cheaper option is worth less than it saves or not
    allowed), ``least`` (no option is smaller), ``best`` (no option scores higher), else ``budget``. ``cheaper``: the
    smaller allowed option that would cost least, ``saved`` bytes and ``cost`` in score; ``better``: the larger one
    that gains most, with ``needs`` more bytes and ``gain``. ``tied``: modules that share the choice.
    """

    layer: str
    option: Option | None
    nbytes: int
    why: str
    cheaper: Option | None = None
    saved: int = 0
    cost: float = 0.0
    better: Option | None = None
    needs: int = 0
    gain: float = 0.0
    tied: tuple[str, ...] = ()


def reasons(
    space: SearchSpace,
    scores: Values,
    configuration: Configuration,
    allowed: Allowed,
    tied: Mapping[str, tuple[str, ...]] | None = None,
) -> list[LayerReason]:
    """One reason a layer, in the order of the space; ``tied`` names the copies of a layer."""
    return [
        _reason(space, scores, configuration, allowed, layer, (tied or {}).get(layer, ())) for layer in space.layers
    ]


def in_decibels(found: Sequence[LayerReason], scores: Values, configuration: Configuration) -> list[LayerReason]:
    """The same with costs and gains of the whole picture in decibels, where scores are minus what each option adds to
    its error: errors add up, so that one layer's part depends on what all the others do."""
    total = -sum(scores[name][option] for name, option in configuration.items())
    return [
        replace(r, cost=_decibels(total + r.cost, total), gain=_decibels(total, total - r.gain))
        if r.option is not None else r
        for r in found
    ]  # fmt: skip


def _decibels(error: float, other: float) -> float:
    return 10 * math.log10(error / other)


def _reason(
    space: SearchSpace, scores: Values, chosen: Configuration, allowed: Allowed, layer: str, tied: tuple[str, ...]
) -> LayerReason:
    shape = space.shapes[layer]
    if layer not in chosen:
        return LayerReason(layer, None, kept_bytes(shape), "kept", tied=tied)
    option, score = chosen[layer], scores[layer]
    size = option.nbytes(shape)
    smaller = [o for o in allowed.options[layer] if o.nbytes(shape) < size]
    larger = [o for o in allowed.options[layer] if o.nbytes(shape) > size and score[o] > score[option]]
    cheaper = max(smaller, key=lambda o: score[o], default=None)
    better = max(larger, key=lambda o: score[o], default=None)
    refused = any(o.nbytes(shape) < size for o in space.options[layer] if o not in allowed.options[layer])
    why = "budget" if better else "best"
    if cheaper is None:
        why = "constraint" if refused else "least"
    return LayerReason(
        layer,
        option,
        size,
        why,
        cheaper,
        size - cheaper.nbytes(shape) if cheaper else 0,
        score[option] - score[cheaper] if cheaper else 0.0,
        better,
        better.nbytes(shape) - size if better else 0,
        score[better] - score[option] if better else 0.0,
        tied,
    )
