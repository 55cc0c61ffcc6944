"""Grids: the values that the weights of a layer may be rounded to, and rounding of strips of columns to them.

A weight [rows, n] has a code at each place. On a :class:`LevelGrid` a code names one of the levels of its row; on a
:class:`ScaledGrid` it names an entry of a table that all places share, times a scale plus an offset that differ from
group to group of columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numba
import numpy as np
import torch

from qua2sedimo.quantizers.threads import spread

#: (errors fp32 [rows, strip], codes uint8 [rows, strip]) of a strip of columns.
Rounded = tuple[torch.Tensor, torch.Tensor]
#: (changes of the rounded weight fp32 [rows, strip], how many codes moved).
Moved = tuple[torch.Tensor, int]


class Grid(Protocol):
    """The values that a weight [rows, n] may be rounded to."""

    @property
    def shared(self) -> bool:
        """Whether all rows have the same values, which then change together."""

    def values(self, codes: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
        """What codes (uint8 [rows, n]) stand for: fp32 [rows, n]. ``columns``: those of the weight that they are of, if
        not all in order."""

    def rounded(self, w: torch.Tensor, feedback: torch.Tensor, columns: torch.Tensor, compiled: bool) -> Rounded:
        """Round a strip ``w`` [rows, strip], which is overwritten, one column after the other: a column's error times
        ``feedback`` [strip, strip], upper triangular, is subtracted from the later ones. ``columns`` are the numbers of
        its columns in the weight; ``compiled`` is whether to use the kernels for a CPU."""

    def moved(
        self, gradient: torch.Tensor, moment: torch.Tensor, codes: torch.Tensor, columns: torch.Tensor, compiled: bool
    ) -> Moved:
        """Move the codes of a strip to where the row's error is least, the others given; ``codes`` is changed in place,
        ``gradient`` [rows, strip] is overwritten."""


@dataclass(frozen=True, eq=False)
class LevelGrid:
    """``levels`` fp32 [rows, K], ascending, contiguous; or [1, K] if all rows share them."""

    levels: torch.Tensor

    @property
    def shared(self) -> bool:
        return len(self.levels) == 1

    @cached_property
    def _middles(self) -> torch.Tensor:
        return ((self.levels[:, 1:] + self.levels[:, :-1]) / 2).contiguous()

    def values(self, codes: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
        """The levels that codes name."""
        return torch.gather(self.levels.expand(len(codes), -1), 1, codes.long())

    def rounded(self, w: torch.Tensor, feedback: torch.Tensor, columns: torch.Tensor, compiled: bool) -> Rounded:
        """To the nearest level of each row."""
        return (_round_compiled if compiled else _round_batched)(w, feedback, self.levels, self._middles)

    def moved(
        self, gradient: torch.Tensor, moment: torch.Tensor, codes: torch.Tensor, columns: torch.Tensor, compiled: bool
    ) -> Moved:
        """To the level of least error."""
        return (_move_compiled if compiled else _move_batched)(gradient, moment, self.levels, self._middles, codes)


@dataclass(frozen=True, eq=False)
class ScaledGrid:
    """scale · table[code] + offset, with a scale and an offset for every ``group`` columns of every row.

    Shapes:
        scale, offset: fp32 [rows, n / group]; table: fp32 [K], ascending.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    table: torch.Tensor
    group: int

    @property
    def shared(self) -> bool:
        return False

    @cached_property
    def _middles(self) -> torch.Tensor:
        return ((self.table[1:] + self.table[:-1]) / 2).contiguous()

    def values(self, codes: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
        """Multiplied and added in fp32, each rounded: what any program gets that does the same."""
        if columns is not None:
            scale, offset = self._at(columns)
            return self.table[codes.long()] * scale + offset
        of = self.table[codes.long()].view(*self.scale.shape, self.group)
        return (of * self.scale[..., None] + self.offset[..., None]).view(codes.shape)

    def nearest(self, weight: torch.Tensor) -> torch.Tensor:
        """The codes of the values nearest to a weight fp32 [rows, n]."""
        grouped = weight.view(*self.scale.shape, self.group)
        at = (grouped - self.offset[..., None]) / _divisor(self.scale)[..., None]
        return torch.bucketize(at, self._middles).to(torch.uint8).view(weight.shape)

    def rounded(self, w: torch.Tensor, feedback: torch.Tensor, columns: torch.Tensor, compiled: bool) -> Rounded:
        """To the nearest value of each group."""
        scale, offset = self._at(columns)
        if not compiled:
            return _round_scaled_batched(w, feedback, scale, offset, self.table, self._middles)
        errors, codes = torch.empty_like(w), torch.empty(w.shape, dtype=torch.uint8)
        given = [t.numpy() for t in (w, feedback, scale, offset, self.table, self._middles, errors, codes)]
        _over_rows(lambda a, b: _round_scaled_rows(*given, a, b), w)
        return errors, codes

    def moved(
        self, gradient: torch.Tensor, moment: torch.Tensor, codes: torch.Tensor, columns: torch.Tensor, compiled: bool
    ) -> Moved:
        """To the value of least error of the group."""
        scale = self._at(columns)[0]
        if not compiled:
            return _move_scaled_batched(gradient, moment, scale, self.table, self._middles, codes)
        steps = torch.zeros_like(gradient)
        given = [t.numpy() for t in (gradient, moment, scale, self.table, self._middles, codes, steps)]
        _over_rows(lambda a, b: _move_scaled_rows(*given, a, b), gradient)
        return steps, int(torch.count_nonzero(steps))

    def _at(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and offset of these columns: fp32 [rows, strip]."""
        groups = columns // self.group
        return self.scale[:, groups].contiguous(), self.offset[:, groups].contiguous()


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """The scale, or 1 where it is 0 and all codes stand for the same."""
    return torch.where(scale == 0, 1.0, scale)


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
def nearest_level(middles, value):  # type: ignore[no-untyped-def]
    """The place of the level nearest to a value; ``middles``: [levels − 1], means of neighbouring levels, rising."""
    low, high = 0, middles.size
    while low < high:
        k = (low + high) >> 1
        if value > middles[k]:
            low = k + 1
        else:
            high = k
    return low


@numba.njit(cache=True, nogil=True, inline="always")
def _counted_level(middles, value):  # type: ignore[no-untyped-def]
    """The same, by counting the middles below the value: all at once, where a search waits for each comparison."""
    below = 0
    for k in range(middles.size):
        below += value > middles[k]
    return below


@numba.njit(cache=True, nogil=True, fastmath=True)
def _round_rows(w, feedback, levels, middles, errors, codes, first, last):  # type: ignore[no-untyped-def]
    n = w.shape[1]
    for r in range(first, last):
        row, book, between = w[r], levels[r % levels.shape[0]], middles[r % levels.shape[0]]
        for j in range(n):
            code = _counted_level(between, row[j])
            error = row[j] - book[code]
            codes[r, j], errors[r, j] = code, error
            back = feedback[j]
            for i in range(n):  # those up to j, which are done, too: a loop of fixed length is faster
                row[i] -= error * back[i]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _move_rows(gradient, moment, levels, middles, codes, steps, first, last):  # type: ignore[no-untyped-def]
    n = gradient.shape[1]
    for r in range(first, last):
        g, book, between = gradient[r], levels[r % levels.shape[0]], middles[r % levels.shape[0]]
        for j in range(n):
            here = book[codes[r, j]]
            code = _counted_level(between, here + g[j] / moment[j, j])
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


@numba.njit(cache=True, nogil=True, fastmath=True)
def _round_scaled_rows(w, feedback, scale, offset, table, middles, errors, codes, first, last):  # type: ignore[no-untyped-def]
    n = w.shape[1]
    for r in range(first, last):
        row = w[r]
        for j in range(n):
            by = scale[r, j]
            code = _counted_level(middles, (row[j] - offset[r, j]) / by if by != 0 else np.float32(0))
            error = row[j] - (by * table[code] + offset[r, j])
            codes[r, j], errors[r, j] = code, error
            back = feedback[j]
            for i in range(n):
                row[i] -= error * back[i]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _move_scaled_rows(gradient, moment, scale, table, middles, codes, steps, first, last):  # type: ignore[no-untyped-def]
    n = gradient.shape[1]
    for r in range(first, last):
        g = gradient[r]
        for j in range(n):
            by = scale[r, j]
            if by == 0:
                continue
            here = table[codes[r, j]]
            code = _counted_level(middles, here + g[j] / (moment[j, j] * by))
            if code != codes[r, j]:
                step = by * (table[code] - here)
                codes[r, j], steps[r, j] = code, step
                across = moment[j]
                for i in range(n):
                    g[i] -= step * across[i]


def _round_scaled_batched(
    w: torch.Tensor, feedback: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, table: torch.Tensor,
    middles: torch.Tensor,
) -> Rounded:  # fmt: skip
    """As :func:`_round_scaled_rows`, all rows at once, on any device."""
    errors, codes, by = torch.empty_like(w), torch.empty(w.shape, dtype=torch.uint8, device=w.device), _divisor(scale)
    for j in range(w.shape[1]):
        code = torch.bucketize((w[:, j] - offset[:, j]) / by[:, j], middles)
        error = w[:, j] - (scale[:, j] * table[code] + offset[:, j])
        codes[:, j], errors[:, j] = code.to(torch.uint8), error
        w[:, j + 1 :].addmm_(error[:, None], feedback[j : j + 1, j + 1 :], alpha=-1)
    return errors, codes


def _move_scaled_batched(
    gradient: torch.Tensor, moment: torch.Tensor, scale: torch.Tensor, table: torch.Tensor, middles: torch.Tensor,
    codes: torch.Tensor,
) -> Moved:  # fmt: skip
    """As :func:`_move_scaled_rows`, all rows at once, on any device."""
    steps, by = torch.zeros_like(gradient), _divisor(scale)
    for j in range(codes.shape[1]):
        here = table[codes[:, j].long()]
        code = torch.bucketize(here + gradient[:, j] / (moment[j, j] * by[:, j]), middles)
        code = torch.where(scale[:, j] == 0, codes[:, j].long(), code)
        step = scale[:, j] * (table[code] - here)
        codes[:, j], steps[:, j] = code.to(torch.uint8), step
        gradient.addmm_(step[:, None], moment[j : j + 1], alpha=-1)
    return steps, int(torch.count_nonzero(steps))


#: For tests: kernels and tensor operations that must agree.
PAIRS = ((_round_compiled, _round_batched), (_move_compiled, _move_batched))
