"""Compiled (numba) steps before and after an integer matrix product: quantize the input rows, scale the result.

Both process chunks that fit the processor's cache and memory that the allocator can reuse: clearing new pages would
take as long as the product itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numba
import numpy as np
import torch

from qua2sedimo.quantizers.threads import spread

#: Elements per chunk: 4 MB in fp32.
MOST = 1 << 20
#: Adding and subtracting this constant rounds a much smaller number to an integer, halves to even.
_EVEN = np.float32(3 << 22)


def parts(count: int, width: int) -> Iterator[slice]:
    """Slices of consecutive rows (or columns) of ``width`` elements, with at most :data:`MOST` elements each."""
    few = max(1, MOST // max(1, width))
    return (slice(first, first + few) for first in range(0, count, few))


def rounded_rows(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize each row of ``x`` (floating point, [M, K]) to ``bits`` on a grid from its minimum to its maximum.

    Returns int8 codes p [M, K] and, per row, the grid's midpoint m, the step Δ and the sum of the codes, fp32 [M]:
    x̂ = m + Δ·p. The midpoint of a row with non-finite values is not finite.
    """
    codes = torch.empty(x.shape, dtype=torch.int8)
    least, step, total = (torch.empty(len(x)) for _ in range(3))
    half = 2 ** (bits - 1)
    for part in parts(*x.shape):
        wide = x[part].float()
        least[part] = wide.amin(dim=1)
        width = (wide.amax(dim=1) - least[part]) / (2**bits - 1)
        step[part] = torch.where(width > 0, width, 1.0)
        given = [t.numpy() for t in (wide.contiguous(), least[part], step[part], codes[part], total[part])]
        spread(partial(_round, *given, np.float32(half)), len(wide), wide.numel())
    return codes, least + step * half, step, total


def scaled_rows(product: torch.Tensor, of_rows: torch.Tensor, of_columns: torch.Tensor) -> torch.Tensor:
    """y[r, c] = a·A·product[r, c] + b·B + d·D + E, fp32 [M, N].

    ``product`` is int32 [M, N]; ``of_rows`` fp32 [M, 3] has a, b, d of each row, ``of_columns`` fp32 [4, N] has A, B,
    D, E of each column.
    """
    out = torch.empty(product.shape)
    given = [t.numpy() for t in (product, of_rows, of_columns, out)]
    spread(partial(_scale, *given), len(out), out.numel())
    return out


@numba.njit(cache=True, nogil=True)
def _round(x, least, step, codes, total, half, first, last):  # type: ignore[no-untyped-def]
    for r in range(first, last):
        row, out, low, width = x[r], codes[r], least[r], step[r]
        for i in range(x.shape[1]):
            out[i] = np.int8(np.int32(((row[i] - low) / width + _EVEN) - _EVEN - half))
        found = np.int32(0)
        for i in range(x.shape[1]):
            found += np.int32(out[i])
        total[r] = np.float32(found)


@numba.njit(cache=True, nogil=True)
def _scale(product, of_rows, of_columns, out, first, last):  # type: ignore[no-untyped-def]
    for r in range(first, last):
        a, b, d = of_rows[r, 0], of_rows[r, 1], of_rows[r, 2]
        for c in range(product.shape[1]):
            rank_one = b * of_columns[1, c] + d * of_columns[2, c] + of_columns[3, c]
            out[r, c] = a * of_columns[0, c] * np.float32(product[r, c]) + rank_one
