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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def compensated(
    method: Coded, rows: torch.Tensor, bits: int, codes: torch.Tensor, parameters: Parameters, moment: Moment
) -> tuple[torch.Tensor, Parameters]:
    """Codes (uint8 [rows, n]) and parameters of a weight ``rows`` [rows, n] with compensated rounding.

    ``codes`` and ``parameters`` are those of nearest rounding, which remain where nothing is better.
    """
    weight = rows.float()
    shared = method.grid(parameters, bits, rows.dtype).shared
    large = is_large(len(weight), moment)
    sweeps, fits = (1, 1) if large else (SWEEPS, _FITS)

    def grid(factor: torch.Tensor) -> Grid:
        return method.grid(method.rescaled(parameters, factor[:1] if shared else factor), bits, rows.dtype)

    ones = torch.ones(len(weight), device=weight.device)
    best = _Found(ones, codes.clone(), moment.errors(weight - grid(ones).values(codes)))
    strips = strips_of(weight, moment)

    def attempt(factor: torch.Tensor, descend: int) -> None:
        given = grid(factor)
        found = torch.cat([s.rounded(given, descend) for s in strips], dim=1)
        _keep_better(best, factor, found, moment.errors(weight - given.values(found)), shared)

    few = _FEW_FACTORS if large else _FACTORS
    attempt(_best_factor([value * ones for value in (*few, *(_MORE if bits <= 2 else ()))], strips, grid, shared), 0)
    for _ in range(fits):
        before = float(best.error.sum())
        attempt(_fitted(grid(best.factor), best, weight, moment, shared), sweeps)
        if float(best.error.sum()) > before * (1 - 1e-3):
            break
    factor = _fitted(grid(best.factor), best, weight, moment, shared)
    _keep_better(best, factor, best.codes, moment.errors(weight - grid(factor).values(best.codes)), shared)
    return best.codes, method.rescaled(parameters, best.factor[:1] if shared else best.factor)


def is_large(rows: int, moment: Moment) -> bool:
    """Whether a layer of so many rows is one on which less is tried."""
    return rows * sum(len(b) ** 2 for b in moment.blocks) > _LARGE


def strips_of(weight: torch.Tensor, moment: Moment) -> list[Strips]:
    """A weight fp32 [rows, n], to be rounded under each block of a moment."""
    span = _SPAN if is_large(len(weight), moment) else moment.inputs
    return [Strips(weight[:, a:b], factor, a, span) for (a, b), factor in zip(moment.spans(), moment.factors)]


def _best_factor(
    factors: Sequence[torch.Tensor], strips: Sequence[Strips], grid: Callable[[torch.Tensor], Grid], shared: bool,
) -> torch.Tensor:  # fmt: skip
    """The factor of least loss of each row, or of all rows together if they share their values."""
    grids = map(grid, factors)
    losses = torch.stack([sum((s.loss(given) for s in strips), torch.zeros(1)) for given in grids])
    if shared:
        losses = losses.sum(dim=1, keepdim=True).expand_as(losses)
    chosen = losses.argmin(dim=0)
    return torch.stack(list(factors)).gather(0, chosen[None].to(factors[0].device))[0]


def _keep_better(best: _Found, factor: torch.Tensor, codes: torch.Tensor, error: torch.Tensor, shared: bool) -> None:
    """Take what is better: row by row, or for all rows at once if they share their values."""
    better = (error.sum() < best.error.sum()).expand(len(error)) if shared else error < best.error
    here = better.to(codes.device)
    best.codes = torch.where(here[:, None], codes, best.codes)
    best.factor = torch.where(here, factor, best.factor)
    best.error = torch.where(better, error, best.error)


def _fitted(grid: Grid, best: _Found, weight: torch.Tensor, moment: Moment, shared: bool) -> torch.Tensor:
    """The factor of each row that minimises its error for these codes: a = p·H·wᵀ / p·H·pᵀ, p the row as rounded."""
    p = grid.values(best.codes)
    above, below = (torch.zeros(len(p), dtype=torch.float64, device=p.device) for _ in range(2))
    for (a, b), block in zip(moment.spans(), moment.blocks):
        ph = p[:, a:b] @ block.to(p.device)
        above += torch.sum(ph * weight[:, a:b], dim=1, dtype=torch.float64)
        below += torch.sum(ph * p[:, a:b], dim=1, dtype=torch.float64)
    if shared:
        above, below = above.sum().expand(len(p)), below.sum().expand(len(p))
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
