"""K-Means with optimal codebooks: per output channel ("C") and per tensor ("A")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from qua2sedimo.quantizers.kmeans_kernels import (
    assign_rows,
    optimal_codebooks_rows,
    optimal_codebooks_weighted,
)
from qua2sedimo.quantizers.method import Method, stored_dtype

_BINS = 1 << 16


class KMeansPerChannel(Method):
    """A codebook of 2^b values per output channel: the exact 1-D K-Means optimum.

    One dynamic program over the sorted channel yields the optimum for every number of clusters, so all bit
    widths cost little more than the widest. Codebooks are rounded to the stored 16-bit type before weights
    are assigned to their nearest entry.
    """

    name = "kmeans_c"

    def parameter_shapes(self, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
        return {"codebook": (shape[0], 2**bits)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        return {"codebook": stored}

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        rows = weight.float().cpu().numpy()
        sizes = np.array([2**b for b in bits], dtype=np.int64)
        packed = optimal_codebooks_rows(np.sort(rows, axis=1), sizes)  # [channels, sum of sizes]
        splits = np.split(packed, np.cumsum(sizes)[:-1], axis=1)
        fitted = (_nearest(rows, centers, weight.dtype) for centers in splits)
        return [(codes.to(weight.device), {"codebook": book.to(weight.device)}) for codes, book in fitted]

    def decode(self, codes: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.gather(parameters["codebook"], 1, codes.long())


class KMeansPerTensor(Method):
    """One codebook of 2^b values for the whole tensor: weighted K-Means on its distinct values.

    An fp16 or bf16 tensor has at most 65,536 distinct values, so the dynamic program is exact. An fp32 tensor is
    first binned: values fall in 65,536 equal bins of [min, max], each represented by its mean and count, which
    moves no cluster boundary by more than one bin, 1.5·10⁻⁵ of the range.
    """

    name = "kmeans_a"

    def parameter_shapes(self, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
        return {"codebook": (2**bits,)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        return {"codebook": stored}

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        rows = weight.float().cpu().numpy()
        values, counts = _histogram(rows.reshape(-1), exact=weight.dtype != torch.float32)
        sizes = np.array([2**b for b in bits], dtype=np.int64)
        packed = optimal_codebooks_weighted(values, counts, sizes)
        splits = np.split(packed, np.cumsum(sizes)[:-1])
        fitted = (_nearest(rows.reshape(1, -1), centers[None], weight.dtype) for centers in splits)
        return [
            (codes.view(weight.shape).to(weight.device), {"codebook": books[0].to(weight.device)})
            for codes, books in fitted
        ]

    def decode(self, codes: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return parameters["codebook"][codes.long()]


def _nearest(rows: np.ndarray, centers: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codebooks rounded as stored, then for each weight the nearest entry: (codes as rows, codebooks)."""
    codebooks = torch.from_numpy(centers).to(stored_dtype(dtype))
    return torch.from_numpy(assign_rows(rows, codebooks.float().numpy())), codebooks


def _histogram(values: np.ndarray, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values (float64) and how often each occurs; fp32 values are binned."""
    if exact:
        distinct, counts = np.unique(values, return_counts=True)
        return distinct.astype(np.float64), counts.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low]), np.array([float(values.size)])
    bins = np.minimum(((values.astype(np.float64) - low) * (_BINS / (high - low))).astype(np.int64), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS).astype(np.float64)
    sums = np.bincount(bins, weights=values, minlength=_BINS)
    used = counts > 0
    return sums[used] / counts[used], counts[used]
