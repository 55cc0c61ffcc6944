"""Compensated rounding: what a rounded column gets wrong is made up for by the columns still to come.

For a weight W [rows, n] and the second moment H of its inputs, the squared error of the output is (w − q)·H·(w − q)ᵀ, a
sum over rows. Columns are taken in order of falling H_jj. With H⁻¹ = (D·U)ᵀ·(D·U), U upper triangular with ones on its
diagonal, column j goes to its nearest level, and its error times U_jk is subtracted from every later column k, which
is what minimises the error that remains (Frantar et al. 2023, "GPTQ"; Chee et al. 2023, "QuIP", who call it LDLQ).

This serves every :class:`~qua2sedimo.quantizers.method.CodeMethod`, whatever the :class:`Grid` of its values. Around
it: each row tries several factors on its values and keeps the best by the error *after* compensation; then scales are
fitted to the codes in closed form, and single codes are moved to where the row's error is least (coordinate descent).
Nothing is kept that is worse for the row than what was there, nearest rounding first.

Columns are processed in strips: within one, compiled kernels on a CPU and batched tensor operations elsewhere
(:mod:`qua2sedimo.quantizers.grids`); between strips, matrix products.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from qua2sedimo.quantizers.grids import Grid
from qua2sedimo.quantizers.moment import Factor, Moment

_STRIP = 32  # columns of a strip: the work within one grows with its width, and is not done by matrix products
_SPAN = (
    256  # columns of a large layer that are corrected after every strip; those beyond, once for all strips of a span
)
_FACTORS = (1.0, 0.9, 0.8, 0.7, 1.1)
_MORE = (0.6, 1.25, 1.4, 1.6)  # tried too at 1 and 2 bits, for rows with far outliers
SWEEPS = 3  # of coordinate descent
_FITS = 2  # times that scales are fitted to the codes
#: From this many multiplications on (rows · n²), fewer factors are tried, scales are fitted once and descent has one
#: sweep: on large layers each brings less and takes minutes.
_LARGE = 1_400_000_000
_FEW_FACTORS = (1.0, 0.9, 0.8, 0.7)
#: One in so many rows of a large layer, and as many of those that err most, try all factors; the others, if each row
#: has its own, only the best :data:`_KEPT` of these.
_SAMPLED = 16
_KEPT = 3

Parameters = dict[str, torch.Tensor]


class Coded(Protocol):
    """What compensation needs of a :class:`~qua2sedimo.quantizers.method.CodeMethod`."""

    def grid(self, parameters: Parameters, bits: int, dtype: torch.dtype) -> Grid: ...

    def rescaled(self, parameters: Parameters, factors: torch.Tensor) -> Parameters: ...


@dataclass
class _Found:
    """The best of each row so far: factor [rows], codes uint8 [rows, n], error float64 [rows]."""

    factor: torch.Tensor
    codes: torch.Tensor
    error: torch.Tensor


class Target:
    """A weight ``rows`` [rows, n] to be rounded under a moment: what all widths of it share."""

    def __init__(self, rows: torch.Tensor, moment: Moment) -> None:
        self.dtype, self.weight, self.moment = rows.dtype, rows.float(), moment
        #: Whether less is tried, since it takes long.
        self.large = len(rows) * sum(len(b) ** 2 for b in moment.blocks) > _LARGE
        self._span = _SPAN if self.large else moment.inputs

    @cached_property
    def strips(self) -> list[Strips]:
        """The weight under each block of the moment."""
        return self.strips_of(self.weight)

    def strips_of(self, weight: torch.Tensor) -> list[Strips]:
        """These, of some of its rows."""
        pairs = zip(self.moment.spans(), self.moment.factors)
        return [Strips(weight[:, a:b], factor, a, self._span) for (a, b), factor in pairs]

    def errors(self, values: torch.Tensor) -> torch.Tensor:
        """Of each row of a weight fp32 [rows, n] in its place: float64 [rows]."""
        return self.moment.errors(self.weight - values)

    def products(self, values: torch.Tensor) -> torch.Tensor:
        """v·H·wᵀ of each row v of ``values``: float64 [rows]."""
        return torch.sum(self._pulled * values, dim=1, dtype=torch.float64)

    @cached_property
    def power(self) -> torch.Tensor:
        """w·H·wᵀ of each row: float64 [rows]."""
        return self.products(self.weight)

    @cached_property
    def _pulled(self) -> torch.Tensor:
        """w·H of each row: fp32 [rows, n]."""
        parts = zip(self.moment.spans(), self.moment.blocks)
        return torch.cat([self.weight[:, a:b] @ block.to(self.weight.device) for (a, b), block in parts], dim=1)


def compensated(
    method: Coded, target: Target, bits: int, codes: torch.Tensor, parameters: Parameters
) -> tuple[torch.Tensor, Parameters]:
    """Codes (uint8 [rows, n]) and parameters of a weight with compensated rounding.

    ``codes`` and ``parameters`` are those of nearest rounding, which remain where nothing is better.
    """
    weight, dtype = target.weight, target.dtype
    shared = method.grid(parameters, bits, dtype).shared
    sweeps, fits = (1, 1) if target.large else (SWEEPS, _FITS)

    def grid(factor: torch.Tensor) -> Grid:
        return method.grid(method.rescaled(parameters, factor[:1] if shared else factor), bits, dtype)

    ones = torch.ones(len(weight), device=weight.device)
    best = _Found(ones, codes.clone(), target.errors(grid(ones).values(codes)))

    def attempt(factor: torch.Tensor, descend: int) -> None:
        given = grid(factor)
        found = torch.cat([s.rounded(given, descend) for s in target.strips], dim=1)
        _keep_better(best, factor, found, target.errors(given.values(found)), shared)

    tried = [*(_FEW_FACTORS if target.large else _FACTORS), *(_MORE if bits <= 2 else ())]
    if target.large and (shared or len(tried) > _KEPT + 1):
        some = telling_rows(best.error.to(weight.device), _SAMPLED)
        of_some = parameters if shared else {name: tensor[some] for name, tensor in parameters.items()}
        tried = _promising(
            tried, target.strips_of(weight[some]), shared,
            lambda by: method.grid(method.rescaled(of_some, by[:1] if shared else by), bits, dtype),
        )  # fmt: skip
    attempt(_best_factor([value * ones for value in tried], target.strips, grid, shared), 0)
    for _ in range(fits):
        before = float(best.error.sum())
        attempt(_fitted(grid(best.factor), best, target, shared), sweeps)
        if float(best.error.sum()) > before * (1 - 1e-3):
            break
    factor = _fitted(grid(best.factor), best, target, shared)
    _keep_better(best, factor, best.codes, target.errors(grid(factor).values(best.codes)), shared)
    return best.codes, method.rescaled(parameters, best.factor[:1] if shared else best.factor)


def _best_factor(
    factors: Sequence[torch.Tensor], strips: Sequence[Strips], grid: Callable[[torch.Tensor], Grid], shared: bool,
) -> torch.Tensor:  # fmt: skip
    """The factor of least loss of each row, or of all rows together if they share their values."""
    if len(factors) == 1:
        return factors[0]
    losses = _losses(factors, strips, grid)
    if shared:
        losses = losses.sum(dim=1, keepdim=True).expand_as(losses)
    chosen = losses.argmin(dim=0)
    return torch.stack(list(factors)).gather(0, chosen[None].to(factors[0].device))[0]


def _promising(
    values: Sequence[float], strips: Sequence[Strips], shared: bool, grid: Callable[[torch.Tensor], Grid]
) -> list[float]:
    """Of some factors, those few of which each row's best one leaves these rows the least loss; the best one if all
    rows share it."""
    ones = torch.ones(strips[0].rows)
    losses = _losses([value * ones for value in values], strips, grid)
    if shared:
        return [values[int(losses.sum(dim=1).argmin())]]
    several = list(itertools.combinations(range(len(values)), _KEPT))
    together = torch.stack([losses[list(some)].amin(dim=0).sum() for some in several])
    return [values[i] for i in several[int(together.argmin())]]


def telling_rows(counts: torch.Tensor, every: int) -> torch.Tensor:
    """Numbers of rows by which things can be compared: one in ``every``, and as many of those that count most by
    ``counts`` [rows]."""
    most = counts.topk(max(1, len(counts) // every)).indices
    return torch.cat([torch.arange(0, len(counts), every, device=counts.device), most]).unique()


def _losses(
    factors: Sequence[torch.Tensor], strips: Sequence[Strips], grid: Callable[[torch.Tensor], Grid]
) -> torch.Tensor:
    """[factors, rows]: what compensation leaves of each row."""
    return torch.stack([sum((s.loss(given) for s in strips), torch.zeros(1)) for given in map(grid, factors)])


def _keep_better(best: _Found, factor: torch.Tensor, codes: torch.Tensor, error: torch.Tensor, shared: bool) -> None:
    """Take what is better: row by row, or for all rows at once if they share their values."""
    better = (error.sum() < best.error.sum()).expand(len(error)) if shared else error < best.error
    here = better.to(codes.device)
    best.codes = torch.where(here[:, None], codes, best.codes)
    best.factor = torch.where(here, factor, best.factor)
    best.error = torch.where(better, error, best.error)


def _fitted(grid: Grid, best: _Found, target: Target, shared: bool) -> torch.Tensor:
    """The factor of each row that minimises its error for these codes: a = p·H·wᵀ / p·H·pᵀ, p the row as rounded.

    p·H·pᵀ follows from the error, (w − p)·H·(w − p)ᵀ, without a product with H.
    """
    above = target.products(grid.values(best.codes))
    below = best.error.to(above.device) + 2 * above - target.power
    if shared:
        above, below = above.sum().expand(len(above)), below.sum().expand(len(below))
    by = torch.where((below > 0) & (above > 0), above / below.clamp(min=1e-300), 1.0).clamp(0.25, 4.0)
    return best.factor * by.float()


class Strips:
    """One block of columns of a weight, ordered, to be rounded in strips; ``first`` is the block's first column.

    Errors of a strip are made up for at once in the columns of the same ``span``, and in later ones when it ends: the
    same but for the order of sums, with fewer passes over the weight.
    """

    def __init__(self, weight: torch.Tensor, factor: Factor, first: int = 0, span: int = _SPAN) -> None:
        device = weight.device
        self._order = factor.order.to(device)
        self._columns = self._order + first
        self._weight = weight[:, self._order].contiguous()
        self._moment, self._feedback = factor.moment.to(device), factor.feedback.to(device)
        self._diagonal = 1 / factor.diagonal.to(device)
        self._compiled = device.type == "cpu"
        self._span = span

    @property
    def rows(self) -> int:
        return len(self._weight)

    def rounded(self, grid: Grid, sweeps: int) -> torch.Tensor:
        """Codes uint8 [rows, n] by compensated rounding to the values of a grid, and ``sweeps`` of coordinate descent
        after it; columns in the weight's own order."""
        codes, _ = self._compensate(grid)
        return self._descended(grid, codes, sweeps)

    def descended(self, grid: Grid, codes: torch.Tensor, sweeps: int) -> torch.Tensor:
        """The codes [rows, n] of these columns after ``sweeps`` of coordinate descent."""
        return self._descended(grid, codes[:, self._order].contiguous(), sweeps)

    def loss(self, grid: Grid) -> torch.Tensor:
        """The error of each row [rows] after compensation under the damped moment, which costs no product with it."""
        return self._compensate(grid)[1].cpu()

    def _compensate(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes, ordered; error of each row: the sum of the columns' squared errors over D²)."""
        left = self._weight.clone()
        loss = torch.zeros(len(left), device=left.device)
        codes = torch.empty(left.shape, dtype=torch.uint8, device=left.device)
        wrong = torch.empty_like(left)
        for a, b in self._cuts():
            inner = self._feedback[a:b, a:b].contiguous()
            errors, found = grid.rounded(left[:, a:b].contiguous(), inner, self._columns[a:b], self._compiled)
            codes[:, a:b] = found
            loss += (errors * self._diagonal[a:b]).square().sum(dim=1)
            wrong[:, a:b] = errors
            began = a // self._span * self._span
            ends = began + self._span
            if b < min(ends, left.shape[1]):
                left[:, b:ends].addmm_(errors, self._feedback[a:b, b:ends], alpha=-1)
            elif b < left.shape[1]:
                left[:, b:].addmm_(wrong[:, began:b], self._feedback[began:b, b:], alpha=-1)
        return codes, loss

    def _descended(self, grid: Grid, codes: torch.Tensor, sweeps: int) -> torch.Tensor:
        """Ordered codes moved to where the row's error is least, the others given; in the weight's own order."""
        if sweeps:
            self._descend(grid, codes, sweeps)
        restored = torch.empty_like(codes)
        restored[:, self._order] = codes
        return restored

    def _descend(self, grid: Grid, codes: torch.Tensor, sweeps: int) -> None:
        gradient = (self._weight - grid.values(codes, self._columns)) @ self._moment
        for _ in range(sweeps):
            moved = 0
            for a, b in self._cuts():
                inner, found = self._moment[a:b, a:b].contiguous(), codes[:, a:b].contiguous()
                own = gradient[:, a:b].clone(memory_format=torch.contiguous_format)  # overwritten
                steps, count = grid.moved(own, inner, found, self._columns[a:b], self._compiled)
                if count:
                    codes[:, a:b] = found
                    gradient.addmm_(steps, self._moment[a:b], alpha=-1)
                    moved += count
            if moved <= codes.numel() // 2000:
                return

    def _cuts(self) -> list[tuple[int, int]]:
        n = self._weight.shape[1]
        return [(a, min(n, a + _STRIP)) for a in range(0, n, _STRIP)]
