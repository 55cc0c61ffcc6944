"""A metric's value over images, and how far chance may have moved it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_REPLICATES = 200
_SET_REPLICATES = 50  # each computes a distance of sets


@dataclass(frozen=True)
class Estimate:
    """A metric's value with a 95 % bootstrap interval and the number of images behind it."""

    value: float
    low: float
    high: float
    images: int


def mean_estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of per-image values with its percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(values), size=(_REPLICATES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def set_estimate(
    distance: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray, seed: int = 0
) -> Estimate:
    """Distance of two feature sets with a bootstrap interval over both.

    Repeated images inflate a resampled distance, so the spread of the replicates is used around the estimate, not
    their level.
    """
    rng = np.random.default_rng(seed)
    value = distance(a, b)
    replicates = [
        distance(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))])
        for _ in range(_SET_REPLICATES)
    ]
    low, high = np.quantile(replicates, [0.025, 0.975]) - np.mean(replicates)
    return Estimate(value, value + float(low), value + float(high), len(a))
