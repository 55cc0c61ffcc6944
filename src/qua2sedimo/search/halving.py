"""Successive halving: which of several candidates survive, by paired comparison on the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_REPLICATES = 1000


def survivors(values: np.ndarray, most: int, level: float = 0.05, seed: int = 0) -> list[int]:
    """At most ``most`` candidates, best first, without those that are significantly worse than the best one.

    The best one is picked by the same values, and all others are compared with it, so a difference counts only if it is
    larger than the largest between any two of them is by chance. If no candidate is better than another, the chance
    that any is out is at most ``level``; if some are equal, the chance that one of these is out because of another.

    Shapes:
        values: [candidates, images], higher is better.
    """
    order = np.argsort(-values.mean(axis=1), kind="stable")
    p = worse_p(values, int(order[0]), seed)
    return [int(i) for i in order[:most] if p[i] > level]


def worse_p(values: np.ndarray, best: int, seed: int = 0) -> np.ndarray:
    """p-value of each candidate for being worse than ``best`` on the same images: [candidates].

    Adjusted for comparing all pairs: the share of random sign flips of whole images (all candidates alike) in which
    some pair differs by more, in units of its own spread. Exact if the differences of equal candidates are
    distributed symmetrically; Westfall and Young, "Resampling-Based Multiple Testing", 1993.

    Shapes:
        values: [candidates, images].
    """
    count, images = values.shape
    first, second = np.triu_indices(count, 1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_REPLICATES, images))
    extreme = np.abs(_correlations(values[first] - values[second], signs)).max(axis=1, initial=0.0)
    found = _correlations(values[best] - values, np.ones((1, images)))[0]
    return (1 + (extreme[:, None] >= found - 1e-12).sum(axis=0)) / (1 + _REPLICATES)


def _correlations(differences: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Σ s·d / √(n Σ d²), which rises with the t statistic of s·d: [replicates, pairs]; 0 where nothing differs.

    Shapes:
        differences: [pairs, images]; signs: [replicates, images].
    """
    norm = np.sqrt(differences.shape[1] * (differences**2).sum(axis=1))
    return (signs @ differences.T) / np.where(norm > 0, norm, 1.0)


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
