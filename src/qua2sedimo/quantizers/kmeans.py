"""K-Means with optimal codebooks: per output channel ("C") and per tensor ("A").

Codebooks are optimal on every device: they are computed on the CPU, and only codes and codebooks travel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from qua2sedimo.quantizers.lookup import nearest_rows
from qua2sedimo.quantizers.method import LevelMethod, stored_dtype
from qua2sedimo.quantizers.optimal import optimal_codebooks_rows, optimal_codebooks_weighted
from qua2sedimo.quantizers.threads import spread

_BINS = 1 << 16


class KMeansPerChannel(LevelMethod):
    """A codebook of 2^b values per output channel: the exact 1-D K-Means optimum.

    Codebooks are rounded to the stored 16-bit type before weights are assigned to their nearest entry.
    """

    name = "kmeans_c"

    def parameter_shapes(self, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
        return {"codebook": (shape[0], 2**bits)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        return {"codebook": stored}

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        rows = weight.float().cpu().numpy()
        sizes = _sizes(bits)
        centers = np.empty((len(rows), sizes.sum()))

        def best(a: int, b: int) -> None:
            optimal_codebooks_rows(np.sort(rows[a:b], axis=1), sizes, centers[a:b])

        spread(best, len(rows), rows.size)
        fitted = []
        for part in np.split(centers, np.cumsum(sizes)[:-1], axis=1):
            codebooks = torch.from_numpy(part).to(stored_dtype(weight.dtype))
            codes = _nearest(rows, codebooks)
            fitted.append((codes.to(weight.device), {"codebook": codebooks.to(weight.device)}))
        return fitted

    def levels(self, parameters: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
        return parameters["codebook"].float()


class KMeansPerTensor(LevelMethod):
    """One codebook of 2^b values for the whole tensor: weighted K-Means on its distinct values.

    An fp16 or bf16 tensor has at most 65,536 distinct values, so the optimum is exact. An fp32 tensor is
    first binned: values fall in 65,536 equal bins of [min, max], each represented by its mean and count, which
    moves no cluster boundary by more than one bin, 1.5·10⁻⁵ of the range.
    """

    name = "kmeans_a"

    def parameter_shapes(self, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
        return {"codebook": (2**bits,)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        return {"codebook": stored}

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        host = weight.cpu().contiguous()
        if weight.dtype == torch.float32:
            flat = host.numpy().reshape(1, -1)
            values, counts = _binned(flat[0])
        else:
            patterns = host.view(torch.int16).numpy().view(np.uint16).reshape(-1)
            flat = _values_of_patterns(weight.dtype)
            values, counts = _counted(flat[0], np.bincount(patterns, minlength=1 << 16))
        sizes = _sizes(bits)
        centers = optimal_codebooks_weighted(values, counts, sizes)
        fitted = []
        for part in np.split(centers, np.cumsum(sizes)[:-1]):
            codebook = torch.from_numpy(part).to(stored_dtype(weight.dtype))
            codes = _nearest(flat, codebook[None])[0]
            if weight.dtype != torch.float32:  # those were the codes of all values there are
                codes = torch.from_numpy(codes.numpy()[patterns])
            fitted.append((codes.view(weight.shape).to(weight.device), {"codebook": codebook.to(weight.device)}))
        return fitted

    def levels(self, parameters: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
        return parameters["codebook"].float()[None]


def _sizes(bits: Sequence[int]) -> np.ndarray:
    return np.array([2**b for b in bits], dtype=np.int64)


def _nearest(rows: np.ndarray, codebooks: torch.Tensor) -> torch.Tensor:
    """Index of the nearest entry of the row's codebook: uint8 [channels, n]."""
    codes = np.empty(rows.shape, dtype=np.uint8)
    books = codebooks.float().numpy()
    if len(books) == 1:
        nearest_rows(rows, books, codes)
    else:
        spread(lambda a, b: nearest_rows(rows[a:b], books[a:b], codes[a:b]), len(rows), rows.size)
    return torch.from_numpy(codes)


def _values_of_patterns(dtype: torch.dtype) -> np.ndarray:
    """What each 16-bit pattern stands for in ``dtype``: float32 [1, 65536], infinities and NaN among them."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float().numpy()[None]


def _counted(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, sorted (float64), and how often; 0 and −0 are one value."""
    used = counts > 0
    distinct, position = np.unique(values[used].astype(np.float64), return_inverse=True)
    return distinct, np.bincount(position, weights=counts[used])


def _binned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (sorted, float64) and counts of the bins that hold values."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low]), np.array([float(values.size)])
    bins = np.minimum(((values.astype(np.float64) - low) * (_BINS / (high - low))).astype(np.int64), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS).astype(np.float64)
    sums = np.bincount(bins, weights=values, minlength=_BINS)
    used = counts > 0
    return sums[used] / counts[used], counts[used]
