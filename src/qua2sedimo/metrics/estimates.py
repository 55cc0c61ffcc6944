"""A metric's value over images, with its bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from qua2sedimo.formats.document import MaybeFloat

_REPLICATES, _RANK_REPLICATES = 200, 400
_SET_REPLICATES = 50  # fewer: each computes a set distance


@dataclass(frozen=True)
class Estimate:
    """A metric's value with a 95 % bootstrap interval and the number of images behind it.

    ``low`` and ``high`` are NaN where there is no interval: a single image has no spread.
    """

    value: MaybeFloat
    low: MaybeFloat
    high: MaybeFloat
    images: int

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def to_json(self) -> dict[str, Any]:
        """The fields for a JSON file, with NaN as null."""
        return {name: None if isinstance(of, float) and math.isnan(of) else of for name, of in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Estimate:
        """Inverse of :meth:`to_json`; raises TypeError if fields are missing or unknown."""
        fields: dict[str, Any] = {name: math.nan if of is None else of for name, of in content.items()}
        return cls(**fields)


def mean_estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of per-image values with its percentile bootstrap interval, which is NaN for a single value."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), math.nan, math.nan, len(values))
    draws = np.random.default_rng(seed).integers(len(values), size=(_REPLICATES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def rank_estimate(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of two values of the same things [n], with a percentile bootstrap interval over
    these; resamples in which one of the two is constant do not count."""
    pairs, chance, found = np.stack([a, b]), np.random.default_rng(seed), []
    for _ in range(_RANK_REPLICATES):
        drawn = pairs[:, chance.integers(len(a), size=len(a))]
        if np.ptp(drawn, axis=1).min() > 0:
            found.append(float(spearmanr(*drawn).statistic))
    low, high = np.quantile(found, [0.025, 0.975]) if found else (math.nan, math.nan)
    return Estimate(float(spearmanr(*pairs).statistic), float(low), float(high), len(a))


def set_estimate(
    distance: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray, seed: int = 0
) -> Estimate:
    """Distance of two feature sets with a bootstrap interval over both, which is NaN if a set has only one row.

    Repeated images inflate a resampled distance, so the replicates only give the spread around the estimate.
    """
    rng = np.random.default_rng(seed)
    value = distance(a, b)
    if min(len(a), len(b)) < 2:
        return Estimate(value, math.nan, math.nan, len(a))
    replicates = [
        distance(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))])
        for _ in range(_SET_REPLICATES)
    ]
    low, high = np.quantile(replicates, [0.025, 0.975]) - np.mean(replicates)
    return Estimate(value, value + float(low), value + float(high), len(a))
