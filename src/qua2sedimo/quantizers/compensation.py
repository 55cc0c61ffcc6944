"""Compensated rounding: what a rounded column gets wrong is made up for by the columns still to come.

For a weight W [rows, n] and the second moment H of its inputs, the squared error of the output is (w − q)·H·(w − q)ᵀ, a
sum over rows. Columns are taken in order of falling H_jj. With H⁻¹ = (D·U)ᵀ·(D·U), U upper triangular with ones on its
diagonal, column j goes to its nearest level, and its error times U_jk is subtracted from every later column k, which
is what minimises the error that remains (Frantar et al. 2023, "GPTQ"; Chee et al. 2023, "QuIP", who call it LDLQ).

This serves every :class:`~qua2sedimo.quantizers.method.LevelMethod`. Around it: each row tries several factors on its
levels and keeps the best by the error *after* compensation; then scales are fitted to the codes in closed form, and
single codes are moved to where the row's error is least (coordinate descent). Nothing is kept that is worse for the
row than what was there, nearest rounding first.

Columns are processed in strips: within one, compiled kernels on a CPU and batched tensor operations elsewhere; between
strips, matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numba
import torch

from qua2sedimo.quantizers.moment import Factor, Moment
from qua2sedimo.quantizers.threads import spread

_STRIP = 32  # columns of a strip: the work within one grows with its width, and is not done by matrix products
_FACTORS = (1.0, 0.9, 0.8, 0.7, 1.1)
_MORE = (0.6, 1.25, 1.4, 1.6)  # tried too at 1 and 2 bits, for rows with far outliers
_SWEEPS = 3  # of coordinate descent
_FITS = 2  # times that scales are fitted to the codes
#: From this many multiplications on (rows · n²), fewer factors are tried, scales are fitted once and descent has one
#: sweep: on large layers each brings less and takes minutes.
_LARGE = 1_400_000_000
_FEW_FACTORS = (1.0, 0.9, 0.8, 0.7)

Parameters = dict[str, torch.Tensor]


class Levels(Protocol):
    """What compensation needs of a :class:`~qua2sedimo.quantizers.method.LevelMethod`."""

    def levels(self, parameters: Parameters, bits: int) -> torch.Tensor: ...

    def rescaled(self, parameters: Parameters, factors: torch.Tensor) -> Parameters: ...


@dataclass
class _Found:
    """The best of each row so far: factor [rows], codes uint8 [rows, n], error float64 [rows]."""

    factor: torch.Tensor
    codes: torch.Tensor
    error: torch.Tensor


def compensated(
    method: Levels, rows: torch.Tensor, bits: int, codes: torch.Tensor, parameters: Parameters, moment: Moment
) -> tuple[torch.Tensor, Parameters]:
    """Codes (uint8 [rows, n]) and parameters of a weight ``rows`` [rows, n] with compensated rounding.

    ``codes`` and ``parameters`` are those of nearest rounding, which remain where nothing is better.
    """
    weight = rows.float()
    shared = len(method.levels(parameters, bits)) == 1
    large = weight.shape[0] * sum(len(b) ** 2 for b in moment.blocks) > _LARGE
    sweeps, fits = (1, 1) if large else (_SWEEPS, _FITS)

    def levels(factor: torch.Tensor) -> torch.Tensor:
        by = factor[:1] if shared else factor
        return _as_stored(method.levels(method.rescaled(parameters, by), bits), rows.dtype)

    ones = torch.ones(len(weight), device=weight.device)
    best = _Found(ones, codes.clone(), moment.errors(weight - _picked(levels(ones), codes)))
    strips = [_Strips(weight[:, a:b], factor) for (a, b), factor in zip(moment.spans(), moment.factors)]

    def attempt(factor: torch.Tensor, descend: int) -> None:
        given = levels(factor)
        found = torch.cat([s.rounded(given, descend) for s in strips], dim=1)
        _keep_better(best, factor, found, moment.errors(weight - _picked(given, found)), shared)

    few = _FEW_FACTORS if large else _FACTORS
    attempt(_best_factor([value * ones for value in (*few, *(_MORE if bits <= 2 else ()))], strips, levels, shared), 0)
    for _ in range(fits):
        before = float(best.error.sum())
        attempt(_fitted(levels(best.factor), best, weight, moment, shared), sweeps)
        if float(best.error.sum()) > before * (1 - 1e-3):
            break
    factor = _fitted(levels(best.factor), best, weight, moment, shared)
    _keep_better(best, factor, best.codes, moment.errors(weight - _picked(levels(factor), best.codes)), shared)
    return best.codes, method.rescaled(parameters, best.factor[:1] if shared else best.factor)


def _best_factor(
    factors: Sequence[torch.Tensor], strips: Sequence[_Strips], levels: Callable[[torch.Tensor], torch.Tensor],
    shared: bool,
) -> torch.Tensor:  # fmt: skip
    """The factor of least loss of each row, or of all rows together if they share their levels."""
    losses = torch.stack([sum((s.loss(levels(factor)) for s in strips), torch.zeros(1)) for factor in factors])
    if shared:
        losses = losses.sum(dim=1, keepdim=True).expand_as(losses)
    chosen = losses.argmin(dim=0)
    return torch.stack(list(factors)).gather(0, chosen[None].to(factors[0].device))[0]


def _keep_better(best: _Found, factor: torch.Tensor, codes: torch.Tensor, error: torch.Tensor, shared: bool) -> None:
    """Take what is better: row by row, or for all rows at once if they share their levels."""
    better = (error.sum() < best.error.sum()).expand(len(error)) if shared else error < best.error
    here = better.to(codes.device)
    best.codes = torch.where(here[:, None], codes, best.codes)
    best.factor = torch.where(here, factor, best.factor)
    best.error = torch.where(better, error, best.error)


def _fitted(levels: torch.Tensor, best: _Found, weight: torch.Tensor, moment: Moment, shared: bool) -> torch.Tensor:
    """The factor of each row that minimises its error for these codes: a = p·H·wᵀ / p·H·pᵀ, p the row as rounded."""
    p = _picked(levels, best.codes)
    above, below = (torch.zeros(len(p), dtype=torch.float64, device=p.device) for _ in range(2))
    for (a, b), block in zip(moment.spans(), moment.blocks):
        ph = p[:, a:b] @ block.to(p.device)
        above += torch.sum(ph * weight[:, a:b], dim=1, dtype=torch.float64)
        below += torch.sum(ph * p[:, a:b], dim=1, dtype=torch.float64)
    if shared:
        above, below = above.sum().expand(len(p)), below.sum().expand(len(p))
    by = torch.where((below > 0) & (above > 0), above / below.clamp(min=1e-300), 1.0).clamp(0.25, 4.0)
    return best.factor * by.float()


def _as_stored(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Levels as they are decoded: rounded to the weight's type; fp32 [rows or 1, K]."""
    largest = torch.finfo(dtype).max
    return levels.clamp(-largest, largest).to(dtype).float().contiguous()


def _picked(levels: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The levels that codes name: fp32 [rows, n]."""
    return torch.gather(levels.expand(len(codes), -1), 1, codes.long())


class _Strips:
    """One block of columns of a weight, ordered, to be rounded in strips."""

    def __init__(self, weight: torch.Tensor, factor: Factor) -> None:
        device = weight.device
        self._order = factor.order.to(device)
        self._weight = weight[:, self._order].contiguous()
        self._moment, self._feedback = factor.moment.to(device), factor.feedback.to(device)
        self._diagonal = 1 / factor.diagonal.to(device)
        self._compiled = device.type == "cpu"

    def rounded(self, levels: torch.Tensor, sweeps: int) -> torch.Tensor:
        """Codes uint8 [rows, n] by compensated rounding to ``levels`` [rows or 1, K], ascending, and ``sweeps`` of
        coordinate descent after it; columns in the weight's own order."""
        middles = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        codes, _ = self._compensate(levels, middles)
        if sweeps:
            self._descend(levels, middles, codes, sweeps)
        restored = torch.empty_like(codes)
        restored[:, self._order] = codes
        return restored

    def loss(self, levels: torch.Tensor) -> torch.Tensor:
        """The error of each row [rows] after compensation under the damped moment, which costs no product with it."""
        return self._compensate(levels, ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous())[1].cpu()

    def _compensate(self, levels: torch.Tensor, middles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes, ordered; error of each row: the sum of the columns' squared errors over D²)."""
        left = self._weight.clone()
        loss = torch.zeros(len(left), device=left.device)
        codes = torch.empty(left.shape, dtype=torch.uint8, device=left.device)
        round_strip = _round_compiled if self._compiled else _round_batched
        for a, b in self._cuts():
            inner = self._feedback[a:b, a:b].contiguous()
            errors, found = round_strip(left[:, a:b].contiguous(), inner, levels, middles)
            codes[:, a:b] = found
            loss += (errors * self._diagonal[a:b]).square().sum(dim=1)
            if b < left.shape[1]:
                left[:, b:].addmm_(errors, self._feedback[a:b, b:], alpha=-1)
        return codes, loss

    def _descend(self, levels: torch.Tensor, middles: torch.Tensor, codes: torch.Tensor, sweeps: int) -> None:
        """Move codes to where the row's error is least, the other codes given; ``codes`` is changed in place."""
        move = _move_compiled if self._compiled else _move_batched
        gradient = (self._weight - _picked(levels, codes)) @ self._moment
        for _ in range(sweeps):
            moved = 0
            for a, b in self._cuts():
                inner, found = self._moment[a:b, a:b].contiguous(), codes[:, a:b].contiguous()
                own = gradient[:, a:b].clone(memory_format=torch.contiguous_format)  # overwritten
                steps, count = move(own, inner, levels, middles, found)
                if count:
                    codes[:, a:b] = found
                    gradient.addmm_(steps, self._moment[a:b], alpha=-1)
                    moved += count
            if moved <= codes.numel() // 2000:
                return

    def _cuts(self) -> list[tuple[int, int]]:
        n = self._weight.shape[1]
        return [(a, min(n, a + _STRIP)) for a in range(0, n, _STRIP)]


def _round_compiled(
    w: torch.Tensor, feedback: torch.Tensor, levels: torch.Tensor, middles: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(errors fp32 [rows, strip], codes uint8 [rows, strip]) of a strip ``w``, which is overwritten."""
    errors, codes = torch.empty_like(w), torch.empty(w.shape, dtype=torch.uint8)
    given = [t.numpy() for t in (w, feedback, levels, middles, errors, codes)]
    _over_rows(lambda a, b: _round_rows(*given, a, b), w)
    return errors, codes


def _move_compiled(
    gradient: torch.Tensor, moment: torch.Tensor, levels: torch.Tensor, middles: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """(changes of the rounded weight fp32 [rows, strip], how many codes moved); ``codes`` is changed in place."""
    steps = torch.zeros_like(gradient)
    given = [t.numpy() for t in (gradient, moment, levels, middles, codes, steps)]
    _over_rows(lambda a, b: _move_rows(*given, a, b), gradient)
    return steps, int(torch.count_nonzero(steps))


def _over_rows(kernel: Callable[[int, int], object], w: torch.Tensor) -> None:
    spread(kernel, w.shape[0], w.numel() * w.shape[1] // 16)


@numba.njit(cache=True, nogil=True)
def _nearest(middles, value):  # type: ignore[no-untyped-def]
    low, high = 0, middles.size
    while low < high:
        k = (low + high) >> 1
        if value > middles[k]:
            low = k + 1
        else:
            high = k
    return low


@numba.njit(cache=True, nogil=True, fastmath=True)
def _round_rows(w, feedback, levels, middles, errors, codes, first, last):  # type: ignore[no-untyped-def]
    n = w.shape[1]
    for r in range(first, last):
        row, book, between = w[r], levels[r % levels.shape[0]], middles[r % levels.shape[0]]
        for j in range(n):
            code = _nearest(between, row[j])
            error = row[j] - book[code]
            codes[r, j], errors[r, j] = code, error
            back = feedback[j]
            for i in range(j + 1, n):
                row[i] -= error * back[i]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _move_rows(gradient, moment, levels, middles, codes, steps, first, last):  # type: ignore[no-untyped-def]
    n = gradient.shape[1]
    for r in range(first, last):
        g, book, between = gradient[r], levels[r % levels.shape[0]], middles[r % levels.shape[0]]
        for j in range(n):
            here = book[codes[r, j]]
            code = _nearest(between, here + g[j] / moment[j, j])
            if code != codes[r, j]:
                step = book[code] - here
                codes[r, j], steps[r, j] = code, step
                across = moment[j]
                for i in range(n):
                    g[i] -= step * across[i]


def _round_batched(
    w: torch.Tensor, feedback: torch.Tensor, levels: torch.Tensor, middles: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`_round_compiled`, all rows at once, on any device."""
    books, between = levels.expand(len(w), -1), middles.expand(len(w), -1).contiguous()
    errors, codes = torch.empty_like(w), torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    for j in range(w.shape[1]):
        code = torch.searchsorted(between, w[:, j : j + 1].contiguous())
        error = w[:, j : j + 1] - torch.gather(books, 1, code)
        codes[:, j], errors[:, j] = code[:, 0].to(torch.uint8), error[:, 0]
        w[:, j + 1 :].addmm_(error, feedback[j : j + 1, j + 1 :], alpha=-1)
    return errors, codes


def _move_batched(
    gradient: torch.Tensor, moment: torch.Tensor, levels: torch.Tensor, middles: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """As :func:`_move_compiled`, all rows at once, on any device."""
    books, between = levels.expand(len(codes), -1), middles.expand(len(codes), -1).contiguous()
    steps = torch.zeros_like(gradient)
    for j in range(codes.shape[1]):
        here = torch.gather(books, 1, codes[:, j : j + 1].long())
        code = torch.searchsorted(between, (here + gradient[:, j : j + 1] / moment[j, j]).contiguous())
        step = torch.gather(books, 1, code) - here
        codes[:, j], steps[:, j] = code[:, 0].to(torch.uint8), step[:, 0]
        gradient.addmm_(step, moment[j : j + 1], alpha=-1)
    return steps, int(torch.count_nonzero(steps))


#: For tests: kernels and tensor operations that must agree, and numpy's view of a strip.
PAIRS = ((_round_compiled, _round_batched), (_move_compiled, _move_batched))
