"""Distributions over the options of each layer, tilted towards more or fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from qua2sedimo.options import SearchSpace

STEEPEST = 40.0  # beyond, the mean no longer changes


@dataclass(frozen=True)
class OptionTable:
    """Each layer's options sorted by size: ``order`` their indices in the space, ``bits`` average bits with overhead.

    Both [layers, options]; a layer with fewer options repeats its largest, where ``real`` is False.
    """

    order: np.ndarray
    bits: np.ndarray
    real: np.ndarray
    share: np.ndarray
    """Each layer's share of the weights: [layers]."""

    @classmethod
    def of(cls, space: SearchSpace) -> OptionTable:
        sizes = space.option_bytes
        most = max(map(len, sizes))
        order = np.empty((len(sizes), most), dtype=int)
        for row, nbytes in zip(order, sizes):
            by_size = np.argsort(nbytes, kind="stable")
            row[:] = by_size[-1]
            row[: len(by_size)] = by_size
        weights = np.array(space.layer_weights)
        bits = np.array([8 * nbytes[row] for nbytes, row in zip(sizes, order)]) / weights[:, None]
        real = np.arange(most) < np.array([[len(nbytes)] for nbytes in sizes])
        return cls(order, bits, real, weights / space.weights)

    def tilted(self, weights: np.ndarray, slope: float) -> np.ndarray:
        """p(option) ∝ weight · exp(slope · bits), normalised per layer."""
        nearest = (self.bits.max if slope > 0 else self.bits.min)(axis=1, keepdims=True)
        p = weights * np.exp(slope * (self.bits - nearest))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def by_option(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of the table in the space's order of options: an array [options] per layer."""
        return [row[real][np.argsort(order[real])] for row, order, real in zip(values, self.order, self.real)]


def slope_for(mean: Callable[[float], float], target: float) -> float:
    """The slope at which the increasing function ``mean`` equals the target, limited to ±STEEPEST."""
    if mean(-STEEPEST) >= target:
        return -STEEPEST
    if mean(STEEPEST) <= target:
        return STEEPEST
    return float(brentq(lambda slope: mean(slope) - target, -STEEPEST, STEEPEST, xtol=1e-6))
