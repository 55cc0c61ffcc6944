"""The multiple-choice knapsack: one item of every group, least total loss within a capacity, exactly.

A multiplier λ on the size bounds what any choice costs: with the reduced cost r(item) = loss + λ·size − the least of
its group, a choice costs L(λ) + Σ r + λ·(room it leaves), where L(λ) = Σ_g min_j (loss + λ·size) − λ·capacity. At the
best λ very few choices cost little more than L(λ). All of those within a margin are found by a dynamic program over
the groups that have a choice left at this margin, and the margin is widened until there are as many as were asked
for: they are the best.

A partial choice is dropped if ``count`` others are as small and as good (any completion of it is then beaten
``count`` times by theirs), or if the groups to come cannot complete it within the margin: bounded as above, at
several multipliers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numba
import numpy as np

#: Answers are optimal up to this share of the loss above every group's best item.
TOLERANCE = 1e-6
_FIRST, _WIDER = 1e-7, 2.0  # the first margin as a share of the loss, and how it grows
_BATCH = 16
#: Other multipliers than the best one bound what a partial choice can still become if its size is far from the usual.
_MULTIPLIERS = np.array([1.0, 0.25, 0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 4.0])


@dataclass(frozen=True)
class _Problem:
    """Items of all groups in a row: size, loss (least of each group 0); where groups start; λ, r, and L(λ)."""

    size: np.ndarray
    loss: np.ndarray
    starts: np.ndarray
    capacity: int
    multiplier: float
    reduced: np.ndarray
    bound: float

    @property
    def ends(self) -> np.ndarray:
        return np.append(self.starts[1:], len(self.size))


def best_choices(
    sizes: Sequence[np.ndarray], losses: Sequence[np.ndarray], capacity: int, count: int = 1
) -> Iterator[np.ndarray]:
    """The ``count`` least costly distinct choices within ``capacity``, best first: item positions [groups].

    ``sizes`` (whole numbers) and ``losses`` have one array a group. Ends early when no other choice fits.
    """
    if sum(int(np.min(of)) for of in sizes) > capacity:
        return
    problem = _problem(sizes, losses, capacity)
    given: set[tuple[int, ...]] = set()
    asked, margin = min(count, _BATCH), 0.0
    while len(given) < count:
        found, margin, all_of_them = _cheapest(problem, asked, margin)
        for chosen in found:  # equally good ones may come in another order than when fewer were asked for
            if tuple(chosen) not in given and len(given) < count:
                given.add(tuple(chosen))
                yield chosen
        if all_of_them:
            return
        asked = min(count, 4 * asked)


def _cheapest(problem: _Problem, count: int, margin: float) -> tuple[list[np.ndarray], float, bool]:
    """(the ``count`` best, the margin that holds them, whether there are no others)."""
    scale = max(abs(problem.bound), float(problem.loss.max()), 1e-300)
    widest = float(np.maximum.reduceat(problem.reduced, problem.starts).sum()) + problem.multiplier * problem.capacity
    margin = max(margin, _FIRST * scale)
    while True:
        found = _within(problem, count, margin)
        if len(found) >= count:
            return found[:count], margin, False
        if margin > widest:
            return found, margin, True
        margin *= _WIDER


def _within(problem: _Problem, count: int, margin: float) -> list[np.ndarray]:
    """The best choices that cost at most L(λ) + margin, best first, at most ``count``."""
    p = problem
    limit = p.bound + margin * (1 + 1e-9)
    core = [np.arange(a, b)[p.reduced[a:b] <= margin * (1 + 1e-9)] for a, b in zip(p.starts, p.ends)]
    fixed = np.array([items[0] for items in core])
    open_groups = [g for g, items in enumerate(core) if len(items) > 1]
    open_groups.sort(key=lambda g: -np.ptp(p.size[core[g]]))  # those that move the size most come first
    closed = np.delete(fixed, open_groups)
    ahead = [_Ahead.of(p, [core[g] for g in open_groups], x) for x in p.multiplier * _MULTIPLIERS]
    slack = TOLERANCE * max(p.bound, 0.0) / max(1, len(open_groups))

    size, loss = p.size[closed].sum(keepdims=True), p.loss[closed].sum(keepdims=True)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for depth, g in enumerate(open_groups):
        items = core[g]
        size, loss = (size[:, None] + p.size[items]).ravel(), (loss[:, None] + p.loss[items]).ravel()
        kept = np.flatnonzero(size + ahead[0].size[depth + 1] <= p.capacity)
        for a in ahead:
            bound = loss[kept] + a.multiplier * (size[kept] - p.capacity) + a.cost[depth + 1]
            kept = kept[bound <= limit]
        order = kept[np.lexsort((loss[kept], size[kept]))]
        order = order[_skyband(loss[order], count, slack)]
        size, loss = size[order], loss[order]
        steps.append((order // len(items), items[order % len(items)]))

    kept = np.flatnonzero((loss <= limit) & (size <= p.capacity))
    found = []
    for state in kept[np.argsort(loss[kept], kind="stable")][:count]:
        chosen, at = fixed.copy(), int(state)
        for g, (parent, item) in zip(reversed(open_groups), reversed(steps)):
            chosen[g], at = item[at], parent[at]
        found.append(chosen - p.starts)
    return found


@dataclass(frozen=True)
class _Ahead:
    """Of the groups from each depth on: the least size, and the least loss + multiplier·size."""

    multiplier: float
    size: np.ndarray
    cost: np.ndarray

    @classmethod
    def of(cls, p: _Problem, groups: Sequence[np.ndarray], multiplier: float) -> _Ahead:
        size = [p.size[items].min() for items in groups]
        cost = [(p.loss[items] + multiplier * p.size[items]).min() for items in groups]
        return cls(multiplier, *(np.append(np.cumsum(of[::-1])[::-1], 0) for of in (size, cost)))


@numba.njit(cache=True)
def _skyband(loss, count, slack):  # type: ignore[no-untyped-def]
    """Which of the states, in order of size, have fewer than ``count`` before them that are as good up to ``slack``."""
    best = np.full(count, np.inf)  # the least losses so far, ascending
    kept = np.zeros(len(loss), np.bool_)
    for i in range(len(loss)):
        if loss[i] < best[-1] - slack:
            kept[i] = True
            j = count - 1
            while j > 0 and best[j - 1] > loss[i]:
                best[j] = best[j - 1]
                j -= 1
            best[j] = loss[i]
    return kept


def _problem(sizes: Sequence[np.ndarray], losses: Sequence[np.ndarray], capacity: int) -> _Problem:
    starts = np.concatenate([[0], np.cumsum([len(s) for s in sizes])[:-1]]).astype(int)
    group = np.repeat(np.arange(len(sizes)), [len(s) for s in sizes])
    size = np.concatenate(sizes).astype(np.int64)
    loss = np.concatenate([np.asarray(of, dtype=float) - np.min(of) for of in losses])
    loss = loss / max(float(loss.max()), 1e-300)

    def reduced(multiplier: float) -> tuple[np.ndarray, float, int]:
        cost = loss + multiplier * size
        least = np.minimum.reduceat(cost, starts)
        r = cost - least[group]
        held = np.minimum.reduceat(np.where(r <= 0, size, np.iinfo(np.int64).max), starts).sum()
        return r, float(least.sum() - multiplier * capacity), int(held)

    multiplier = _multiplier(lambda x: reduced(x)[2] <= capacity, 1.0 / max(1.0, float(size.max())))
    r, bound, _ = reduced(multiplier)
    return _Problem(size, loss, starts, int(capacity), multiplier, r, bound)


def _multiplier(fits, first: float) -> float:  # type: ignore[no-untyped-def]
    """The least λ ≥ 0 whose choice fits, by bisection: there L(λ) is greatest."""
    if fits(0.0):
        return 0.0
    low, high = 0.0, first
    while not fits(high):
        low, high = high, 8 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
