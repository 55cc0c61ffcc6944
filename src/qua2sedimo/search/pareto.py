"""The Pareto frontier of points that have a size and a value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(sizes: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> list[int]:
    """Positions of the points that no other one beats in size and value, smallest first; higher values are better.

    Of equal points the first counts.
    """
    front: list[int] = []
    values = np.asarray(values)
    for i in np.lexsort((-values, np.asarray(sizes))):
        if not front or values[i] > values[front[-1]]:
            front.append(int(i))
    return front
