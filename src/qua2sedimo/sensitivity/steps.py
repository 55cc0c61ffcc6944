"""What going from about 4 to about 3 bits costs a layer: the one definition, for scores and for objectives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

#: Average bits, overhead counted, that pass as "4 bits" and as "3 bits".
_FOUR, _THREE = (3.5, 4.5), (2.5, 3.5)


@dataclass(frozen=True)
class Rated:
    """An option of a layer: its average bits, and how good each fold finds it (higher is better)."""

    option: str
    bits: float
    folds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.folds))


@dataclass(frozen=True)
class Step:
    """Mean over folds of what is lost from ``better`` to ``worse``, and its standard error.

    The two options are compared within each fold, so that what a fold thinks of the layer as such cancels. ``exact``
    is false where the layer has no option in one of the two ranges: then the cost is a bit's, between the nearest.
    """

    better: str
    worse: str
    folds: tuple[float, ...]
    exact: bool

    @property
    def cost(self) -> float:
        return float(np.mean(self.folds))

    @property
    def spread(self) -> float:
        return standard_error(self.folds)


def standard_error(folds: Sequence[float]) -> float:
    """Standard error of the mean over folds; infinite for one fold, which says nothing of its own spread."""
    return float(np.std(folds, ddof=1) / math.sqrt(len(folds))) if len(folds) > 1 else math.inf


def step(options: Iterable[Rated]) -> Step | None:
    """From the best option of about 4 bits to the best of about 3; None if the layer has no two sizes."""
    rated = [option for option in options if option.folds and math.isfinite(option.mean)]
    four, three = _best(rated, *_FOUR), _best(rated, *_THREE)
    exact = four is not None and three is not None
    if three is None:
        three = _nearest([o for o in rated if four is None or o.bits < four.bits - 0.1], 3.0)
    if four is None and three is not None:
        four = _nearest([o for o in rated if o.bits > three.bits + 0.1], 4.0)
    if four is None or three is None:
        return None
    bits = 1.0 if exact else four.bits - three.bits
    lost = tuple((a - b) / bits for a, b in zip(four.folds, three.folds))
    return Step(four.option, three.option, lost, exact)


def _best(options: Iterable[Rated], above: float, up_to: float) -> Rated | None:
    return max((o for o in options if above < o.bits <= up_to), key=lambda o: o.mean, default=None)


def _nearest(options: Iterable[Rated], bits: float) -> Rated | None:
    return min(options, key=lambda o: (abs(o.bits - bits), -o.mean), default=None)
