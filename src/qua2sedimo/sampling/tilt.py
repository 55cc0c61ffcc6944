"""Distributions over the options of each layer, tilted towards more or fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from qua2sedimo.options import SearchSpace

STEEPEST = 40.0  # beyond, the mean no longer moves


@dataclass(frozen=True)
class OptionTable:
    """Options of every layer by size: ``order`` their positions in the space, ``bits`` average bits with overhead.

    Both [layers, options]; where a layer has fewer options its largest is repeated, and ``real`` is False.
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
        """p(option) ∝ weight · exp(slope · bits), each layer's sum 1."""
        nearest = (self.bits.max if slope > 0 else self.bits.min)(axis=1, keepdims=True)
        p = weights * np.exp(slope * (self.bits - nearest))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def by_option(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of the table in the order of the space's options: layers × [options]."""
        return [row[real][np.argsort(order[real])] for row, order, real in zip(values, self.order, self.real)]


def slope_for(mean: Callable[[float], float], target: float) -> float:
    """The slope whose mean, a rising function, is the target; the steepest if none is."""
    if mean(-STEEPEST) >= target:
        return -STEEPEST
    if mean(STEEPEST) <= target:
        return STEEPEST
    return float(brentq(lambda slope: mean(slope) - target, -STEEPEST, STEEPEST, xtol=1e-6))
