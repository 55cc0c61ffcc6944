"""Cheap before dear: which of several candidates survive, by paired comparison on the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_REPLICATES = 1000


def survivors(values: np.ndarray, most: int, level: float = 0.05, seed: int = 0) -> list[int]:
    """At most ``most`` candidates, best first, that the best one does not clearly beat.

    ``values`` [candidates, images], higher is better. A candidate is out if the paired bootstrap interval of its
    difference to the best lies below 0: its upper ``1 − level`` quantile. Resampled images are the same for all.
    """
    order = np.argsort(-values.mean(axis=1), kind="stable")
    difference = values - values[order[0]]
    return [int(i) for i in order[:most] if i == order[0] or upper(difference[i], level, seed) > 0]


def upper(difference: np.ndarray, level: float = 0.05, seed: int = 0) -> float:
    """The 1 − ``level`` quantile of the bootstrapped mean of paired differences [images]."""
    draws = np.random.default_rng(seed).integers(len(difference), size=(_REPLICATES, len(difference)))
    return float(np.quantile(difference[draws].mean(axis=1), 1 - level))


def paired_p(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences a − b [images], by random sign flips."""
    difference = np.asarray(a) - np.asarray(b)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_REPLICATES, len(difference)))
    extreme = np.abs((signs * difference).mean(axis=1)) >= abs(difference.mean()) - 1e-12
    return float((1 + extreme.sum()) / (1 + _REPLICATES))


def schedule(first: int, images: int, budget: int) -> Sequence[tuple[int, range]]:
    """(candidates, images) of each stage of successive halving: half as many candidates on twice as many new images.

    Starts with ``first`` candidates on ``images`` images, or with as many as ``budget`` allows; ends with two, or when
    a stage would exceed the budget.
    """
    stages: list[tuple[int, range]] = []
    start, count = 0, min(first, budget // images)
    while count >= 2 and count * images <= budget:
        stages.append((count, range(start, start + images)))
        budget -= count * images
        start, images, count = start + images, 2 * images, count // 2
    return stages
