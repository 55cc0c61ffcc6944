"""Row: one 16-bit scale per output channel, times fixed levels that are optimal for a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from qua2sedimo.quantizers.lookup import nearest_rows
from qua2sedimo.quantizers.method import LevelMethod, stored_dtype
from qua2sedimo.quantizers.threads import spread

_STEPS = 3  # alternations of nearest levels and least-squares scale


class RowScale(LevelMethod):
    """ŵ = s·v_k: a scale s per output channel, v the Lloyd-Max levels of a standard Gaussian, the same for all.

    Only s is stored, 16 bits a channel. The scale is the least-squares one for the nearest levels, alternately fitted a
    few times. Fixed levels are as good as a codebook fitted to the tensor (docs/method.md).
    """

    name = "row"

    def parameter_shapes(self, shape: tuple[int, ...], number: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (shape[0],)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        return {"scale": stored}

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        rows, stored = weight.float().cpu().numpy(), stored_dtype(weight.dtype)
        fitted = []
        for b in bits:
            levels = gaussian_levels(b)
            scale = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
            for _ in range(_STEPS):
                picked = levels[_codes(rows, levels, scale)].astype(np.float64)
                above, below = (rows * picked).sum(axis=1), np.square(picked).sum(axis=1)
                scale = np.where(above > 0, above / np.where(below > 0, below, 1.0), scale)
            kept = torch.from_numpy(scale).clamp(max=torch.finfo(stored).max).to(stored)
            codes = torch.from_numpy(_codes(rows, levels, kept.float().numpy()))
            fitted.append((codes.to(weight.device), {"scale": kept.to(weight.device)}))
        return fitted

    def levels(self, parameters: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
        scale = parameters["scale"].float()
        return scale[:, None] * torch.tensor(_constants(bits), dtype=torch.float32, device=scale.device)


def _codes(rows: np.ndarray, levels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Index of the nearest of each row's levels: uint8 [rows, n]."""
    codes = np.empty(rows.shape, dtype=np.uint8)
    books = (scale.astype(np.float32)[:, None] * levels).astype(np.float32)
    spread(lambda a, b: nearest_rows(rows[a:b], books[a:b], codes[a:b]), len(rows), rows.size)
    return codes


@torch.compiler.assume_constant_result
def _constants(bits: int) -> list[float]:
    """The levels as a compiled program holds them: it must not trace how they are found."""
    found: list[float] = gaussian_levels(bits).tolist()
    return found


@cache
def gaussian_levels(bits: int) -> np.ndarray:
    """The 2^bits levels of least mean squared error for a standard Gaussian, ascending (Lloyd 1982; Max 1960): fp32.

    The fixed point of "each level is the mean of its cell, cells are cut midway", by alternation from the
    quantiles on. Levels are symmetric, so there is none at 0.
    """
    count = 2**bits
    levels = ndtri((np.arange(count) + 0.5) / count)
    for _ in range(20_000):
        cuts = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        means = _cell_means(cuts)
        done = np.abs(means - levels).max() < 1e-9
        levels = means
        if done:
            break
    levels = (levels - levels[::-1]) / 2
    found = levels.astype(np.float32)
    found.setflags(write=False)
    return found


def _cell_means(cuts: np.ndarray) -> np.ndarray:
    """Mean of a standard Gaussian within each cell between neighbouring cuts."""
    density = np.exp(-np.square(cuts) / 2) / np.sqrt(2 * np.pi)
    # Probabilities of cells right of 0 are taken from the other tail, where they do not cancel.
    probability = np.where(cuts[:-1] > 0, ndtr(-cuts[:-1]) - ndtr(-cuts[1:]), ndtr(cuts[1:]) - ndtr(cuts[:-1]))
    return np.asarray((density[:-1] - density[1:]) / probability)
