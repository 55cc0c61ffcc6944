"""Optimal 1-D K-Means, compiled: a shortest path whose number of edges a penalty steers.

With sorted values, weights and their prefix sums, one cluster [i, j) costs Σw·x² − (Σw·x)²/Σw, and a clustering
is a path 0 → n with an edge a cluster. If every edge costs a penalty λ more, the cheapest path with any number of
edges obeys F[j] = min_i F[i] + cost(i, j) + λ. Should that path have k edges, it is the best with k edges: a path
as long and cheaper would win with the penalty too. So the optimum for k clusters needs a λ, not k layers of a
dynamic program, and 256 clusters cost no more than 8.

Finding λ: the least cost is convex in k, hence its slopes order the penalties, and for a smooth density it falls
like k⁻² (Panter and Dite), so a clustering that misses k tells nearly where λ lies. If that fails a few times, the
slope between the nearest known clusterings either gives one in between or proves that none is cheaper than their
line; then both are optimal for that λ, and so is a splice of the two that has k edges (Aggarwal, Schieber and
Tokuyama, "Finding a minimum-weight k-link path in graphs with the concave Monge property", 1994).
"""

from __future__ import annotations

import numba
import numpy as np

_LAW_STEPS = 4  # attempts by the law before slopes take over
_LAW_ZERO = -0.6  # the least cost of k clusters falls like (k + 0.6)⁻²: that fits samples of bell-shaped densities
_TIE = 1e-12  # path costs that differ less, relatively, are equal


@numba.njit(cache=True, nogil=True, inline="always")
def _cost(sw, sx, sxx, i, j):  # type: ignore[no-untyped-def]
    total = sx[j] - sx[i]
    return max(0.0, sxx[j] - sxx[i] - total * total / (sw[j] - sw[i]))


@numba.njit(cache=True, nogil=True, inline="always")
def _better(sw, sx, lead, i, k, j):  # type: ignore[no-untyped-def]
    """Whether the best path to j whose last edge starts at ``i`` is cheaper than that whose last starts at k < i.

    ``lead`` is F − Σw·x²: what the two costs share cancels, and multiplied out nothing is divided.
    """
    wi, wk = sw[j] - sw[i], sw[j] - sw[k]
    di, dk = sx[j] - sx[i], sx[j] - sx[k]
    return (lead[i] - lead[k]) * wi * wk < di * di * wk - dk * dk * wi


@numba.njit(cache=True, nogil=True)
def _cheapest_path(sw, sx, penalty, lead, before, edge, since, path):  # type: ignore[no-untyped-def]
    """Fill ``path`` with the nodes of the cheapest path, and return its number of edges.

    ``edge[head:tail + 1]`` are the last edges' starts that will be best for some later end, ``since`` from which
    end on; by the Monge property a later start, once better, stays better. A new start overtakes the last one
    about where that one overtook its predecessor, so a gallop from there finds the place in a few steps.
    """
    n = sw.size - 1
    lead[0] = 0.0
    head = tail = 0
    edge[0], since[0] = 0, 1
    for j in range(1, n + 1):
        while head < tail and since[head + 1] <= j:
            head += 1
        i = edge[head]
        before[j] = i
        total = sx[j] - sx[i]
        lead[j] = lead[i] - total * total / (sw[j] - sw[i]) + penalty
        if j == n:
            break
        since[head] = j + 1
        while True:
            rival = edge[tail]
            low = since[tail]
            if _better(sw, sx, lead, j, rival, low):
                if tail > head:  # the rival is never best
                    tail -= 1
                    continue
                edge[tail] = j
                break
            step = 1
            high = low + 1
            while high <= n and not _better(sw, sx, lead, j, rival, high):
                low = high
                step *= 2
                high = low + step
            high = min(high, n + 1)
            while high - low > 1:
                middle = (low + high) // 2
                if _better(sw, sx, lead, j, rival, middle):
                    high = middle
                else:
                    low = middle
            if high <= n:
                tail += 1
                edge[tail], since[tail] = j, high
            break
    edges = 0
    j = n
    while j > 0:
        edges += 1
        path[n - edges] = j  # backwards, then moved to the front
        j = before[j]
    path[1 : edges + 1] = path[n - edges : n].copy()
    path[0] = 0
    return edges


@numba.njit(cache=True, nogil=True)
def _path_cost(sw, sx, sxx, path, edges):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(edges):
        total += _cost(sw, sx, sxx, path[i], path[i + 1])
    return total


@numba.njit(cache=True, nogil=True)
def _first_penalty(x, sw, size):  # type: ignore[no-untyped-def]
    """The slope of the least cost at ``size`` clusters, from the law for a density: (∫f^⅓)³ / (6·size³).

    Spacings of samples make the integral a little too small: 4.3 instead of 6 is what fits.
    """
    n = x.size
    stride = max(1, n // (2 * size))
    integral = 0.0
    i = 0
    while i + stride < n:
        integral += (x[i + stride] - x[i]) ** (2 / 3) * (sw[i + stride] - sw[i]) ** (1 / 3)
        i += stride
    return integral**3 / (4.3 * size**3)


@numba.njit(cache=True, nogil=True, inline="always")
def _lawful_penalty(k0, root0, k1, root1, size):  # type: ignore[no-untyped-def]
    """The slope at ``size`` of a cost whose inverse root is linear in k, through (k0, root0) and (k1, root1)."""
    rise = (root1 - root0) / (k1 - k0)
    root = root0 + rise * (size - k0)
    return 1 / (root - rise / 2) ** 2 - 1 / (root + rise / 2) ** 2


@numba.njit(cache=True, nogil=True)
def _best_path(sw, sx, sxx, size, penalty, work, fewer, more, path):  # type: ignore[no-untyped-def]
    """Leave the nodes of the cheapest path of exactly ``size`` < n edges in ``path``."""
    n = sw.size - 1
    lead, before, edge, since = work
    few, few_cost = 1, _cost(sw, sx, sxx, 0, n)
    many, many_cost = n, 0.0
    fewer[0], fewer[1] = 0, n
    for i in range(n + 1):
        more[i] = i
    above, below = np.inf, 0.0  # penalties that gave too few and too many edges
    sloped = False
    for attempt in range(2 * n):
        edges = _cheapest_path(sw, sx, penalty, lead, before, edge, since, path)
        if edges == size:
            return
        cost = _path_cost(sw, sx, sxx, path, edges)
        line = few_cost + penalty * few
        if sloped and (edges <= few or edges >= many or cost + penalty * edges >= line * (1 - _TIE)):
            break
        if edges < size:
            above = penalty
            if edges > few:
                few, few_cost = edges, cost
                fewer[: edges + 1] = path[: edges + 1]
        else:
            below = penalty
            if edges < many:
                many, many_cost = edges, cost
                more[: edges + 1] = path[: edges + 1]
        # Once neighbours on both sides are known, their slope is the only penalty that can give what is between.
        sloped = attempt >= _LAW_STEPS or many - few == 2
        if not sloped and below > 0 and above < np.inf and many_cost > 0:
            penalty = _lawful_penalty(few, few_cost**-0.5, many, many_cost**-0.5, size)
            sloped = not (below < penalty < above)
        elif not sloped:
            lawful = _lawful_penalty(_LAW_ZERO, 0.0, edges, cost**-0.5, size) if cost > 0 else penalty
            step = penalty * (edges / size) ** 3
            penalty = max(lawful, step) if edges > size else min(lawful, step)
        if sloped:
            penalty = (few_cost - many_cost) / (many - few)
    _splice(fewer, few, more, size, path)


@numba.njit(cache=True, nogil=True)
def _splice(fewer, few, more, size, path):  # type: ignore[no-untyped-def]
    """Begin as ``more``, go over to ``fewer`` where its edge holds that of ``more``: ``size`` edges in all."""
    shift = size - few
    i = 0
    while more[i + 1 + shift] > fewer[i + 1]:
        i += 1
    path[: i + shift + 1] = more[: i + shift + 1]
    path[i + shift + 1 : size + 1] = fewer[i + 1 : few + 1]


@numba.njit(cache=True, nogil=True)
def _distinct(x, most):  # type: ignore[no-untyped-def]
    """How many distinct values sorted ``x`` has, counted up to ``most``."""
    found = 1
    for i in range(1, x.size):
        if x[i] != x[i - 1]:
            found += 1
            if found > most:
                break
    return found


@numba.njit(cache=True, nogil=True)
def _codebooks(x, w, sizes, out):  # type: ignore[no-untyped-def]
    """Optimal codebooks of every size in ``sizes`` for sorted ``x`` with weights ``w``, one after another in out."""
    n = x.size
    if n == 0:
        out[:] = 0.0
        return
    total = count = 0.0
    for i in range(n):
        total += w[i] * x[i]
        count += w[i]
    mean = total / count  # centring keeps the differences of prefix sums accurate
    sw, sx, sxx = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    for i in range(n):
        d = x[i] - mean
        sw[i + 1] = sw[i] + w[i]
        sx[i + 1] = sx[i] + w[i] * d
        sxx[i + 1] = sxx[i] + w[i] * d * d
    work = (np.empty(n + 1), np.empty(n + 1, np.int64), np.empty(n + 2, np.int64), np.empty(n + 2, np.int64))
    path, fewer, more = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    known, root = 0.0, 0.0  # the last size solved, and the inverse root of its cost
    for which in np.argsort(sizes):  # ascending: what the first size costs tells the later ones where to look
        size = sizes[which]
        start = sizes[:which].sum()
        distinct = _distinct(x, size)
        if distinct <= size:  # every value is an entry; the last fills the places left
            at = 0
            for i in range(n):
                if i == 0 or x[i] != x[i - 1]:
                    out[start + at] = x[i]
                    at += 1
            for extra in range(at, size):
                out[start + extra] = x[n - 1]
        else:
            guess = _lawful_penalty(_LAW_ZERO, 0.0, known, root, size) if root > 0 else _first_penalty(x, sw, size)
            _best_path(sw, sx, sxx, size, guess, work, fewer, more, path)
            cost = _path_cost(sw, sx, sxx, path, size)
            known, root = size, cost**-0.5 if cost > 0 else 0.0
            for k in range(size):
                i, j = path[k], path[k + 1]
                out[start + k] = (sx[j] - sx[i]) / (sw[j] - sw[i]) + mean


@numba.njit(cache=True, nogil=True)
def optimal_codebooks_rows(x, sizes, out):  # type: ignore[no-untyped-def]
    """Sorted rows [channels, n] → ``out``, float64 [channels, Σ sizes]: each row's optimal codebooks, side by side."""
    channels, n = x.shape
    ones = np.ones(n)
    for c in range(channels):
        _codebooks(x[c].astype(np.float64), ones, sizes, out[c])


@numba.njit(cache=True, nogil=True)
def optimal_codebooks_weighted(x, w, sizes):  # type: ignore[no-untyped-def]
    """Sorted distinct values [n] with weights → float64 [Σ sizes]: the optimal codebooks, side by side."""
    out = np.empty(sizes.sum())
    _codebooks(x, w, sizes, out)
    return out
