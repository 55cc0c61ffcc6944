"""Compiled kernels of optimal 1-D K-Means.

With sorted values x, weights w and prefix sums, the cost of one cluster [i, j) is Σw·x² − (Σw·x)²/Σw. The best
partition of the first j values into k clusters is D_k[j] = min_i D_{k−1}[i] + cost(i, j), and its argmin does
not decrease in j nor in k. Each layer of the program is filled from coarse to fine: an argmin is searched only
between those of its already known neighbours, O(n log n) a layer. (Grønlund et al., arXiv 1701.07204.)
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, inline="always")
def _cost(sw, sx, sxx, i, j):  # type: ignore[no-untyped-def]
    weight = sw[j] - sw[i]
    total = sx[j] - sx[i]
    return max(0.0, sxx[j] - sxx[i] - total * total / weight) if weight > 0 else 0.0


@numba.njit(cache=True, nogil=True)
def _codebooks(x, w, sizes, out):  # type: ignore[no-untyped-def]
    """Optimal codebooks of every size in ``sizes`` for sorted ``x`` with weights ``w``, one after another in out."""
    n = x.size
    if n == 0:
        out[:] = 0.0
        return
    total = 0.0
    count = 0.0
    for i in range(n):
        total += w[i] * x[i]
        count += w[i]
    mean = total / count  # centring keeps the differences of prefix sums accurate
    sw = np.zeros(n + 1)
    sx = np.zeros(n + 1)
    sxx = np.zeros(n + 1)
    for i in range(n):
        d = x[i] - mean
        sw[i + 1] = sw[i] + w[i]
        sx[i + 1] = sx[i] + w[i] * d
        sxx[i + 1] = sxx[i] + w[i] * d * d

    layers = min(sizes.max(), n)
    argmin = np.zeros((layers + 1, n + 1), dtype=np.int32)
    before = np.empty(n + 1)
    after = np.empty(n + 1)
    for j in range(n + 1):
        before[j] = _cost(sw, sx, sxx, 0, j)
    top = 1
    while top <= n:
        top *= 2
    for k in range(2, layers + 1):
        step = top
        for j in range(min(k, n + 1)):
            after[j] = 0.0
            argmin[k, j] = j
        while step >= 1:
            j = step
            while j <= n:
                if j >= k:
                    left = j - step
                    right = j + step
                    low = max(k - 1, argmin[k - 1, j])
                    if left >= k:
                        low = max(low, argmin[k, left])
                    high = j - 1
                    if right <= n:
                        high = min(high, argmin[k, right])
                    best = np.inf
                    where = low
                    for i in range(low, high + 1):
                        c = before[i] + _cost(sw, sx, sxx, i, j)
                        if c < best:
                            best = c
                            where = i
                    after[j] = best
                    argmin[k, j] = where
                j += 2 * step
            step //= 2
        before, after = after, before

    start = 0
    for size in sizes:
        k = min(size, n)
        j = n
        while k > 0:
            i = argmin[k, j] if k > 1 else 0
            out[start + k - 1] = (sx[j] - sx[i]) / (sw[j] - sw[i]) + mean
            j = i
            k -= 1
        for extra in range(min(size, n), size):  # fewer distinct values than levels: repeat the last
            out[start + extra] = out[start + min(size, n) - 1]
        start += size


@numba.njit(cache=True, nogil=True, parallel=True)
def optimal_codebooks_rows(x, sizes):  # type: ignore[no-untyped-def]
    """Sorted rows [channels, n] → float64 [channels, Σ sizes]: each row's optimal codebooks, side by side."""
    channels, n = x.shape
    out = np.empty((channels, sizes.sum()))
    ones = np.ones(n)
    for c in numba.prange(channels):
        _codebooks(x[c].astype(np.float64), ones, sizes, out[c])
    return out


@numba.njit(cache=True, nogil=True)
def optimal_codebooks_weighted(x, w, sizes):  # type: ignore[no-untyped-def]
    """Sorted distinct values [n] with weights → float64 [Σ sizes]: the optimal codebooks, side by side."""
    out = np.empty(sizes.sum())
    _codebooks(x, w, sizes, out)
    return out


@numba.njit(cache=True, nogil=True, parallel=True)
def assign_rows(x, codebooks):  # type: ignore[no-untyped-def]
    """Nearest entry of each row's ascending codebook (the lower index on a tie): uint8, shape of x."""
    channels, n = x.shape
    codes = np.empty((channels, n), dtype=np.uint8)
    size = codebooks.shape[1]
    for c in numba.prange(channels):
        book = codebooks[c]
        for i in range(n):
            low = 0
            high = size - 1
            while low < high:  # the first entry whose midpoint to the next is not below the value
                middle = (low + high) // 2
                if x[c, i] - book[middle] > book[middle + 1] - x[c, i]:
                    low = middle + 1
                else:
                    high = middle
            codes[c, i] = low
    return codes
