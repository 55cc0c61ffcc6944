"""The Pareto front: which of several points no other one beats in size and value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(sizes: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> list[int]:
    """Positions of the points [points] that no other one beats, smallest first.

    A point is beaten by one that is no larger and better, or smaller and no worse; higher values are better. Of points
    of equal size and value the first is kept; a value that is NaN is never on the front.
    """
    nbytes, value = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    value = np.where(np.isnan(value), -np.inf, value)
    order = np.lexsort((-value, nbytes))
    best = np.concatenate([[-np.inf], np.maximum.accumulate(value[order])[:-1]])
    return [int(i) for i in order[value[order] > best]]
