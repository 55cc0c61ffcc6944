"""Scales and offsets moved, one after the other, to where the error of a row's output is least, codes given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qua2sedimo.quantizers.compensation import SWEEPS, Target
from qua2sedimo.quantizers.gguf.fitting import Parameters, half
from qua2sedimo.quantizers.gguf.scales import packed_scales, unpacked_scales
from qua2sedimo.quantizers.gguf.types import BlockType
from qua2sedimo.quantizers.grids import ScaledGrid
from qua2sedimo.quantizers.moment import Moment

_ROUNDS = 3  # of moving scales, then codes


def refined(
    kind: BlockType, grid_of: Callable[[Parameters], ScaledGrid], target: Target, codes: torch.Tensor,
    parameters: Parameters,
) -> tuple[torch.Tensor, Parameters]:  # fmt: skip
    """Codes (uint8 [rows, n]) and parameters of a weight with no more error.

    Where a group of weights lies in two blocks of the moment, they are returned as they are.
    """
    moment = target.moment
    if any(a % kind.group for a, _ in moment.spans()):
        return codes, parameters
    error = float(target.errors(grid_of(parameters).values(codes)).sum())
    for _ in range(1 if target.large else _ROUNDS):
        moved = _moved(kind, grid_of(parameters), target.weight, codes, parameters, moment)
        grid = grid_of(moved)
        found = torch.cat(
            [s.descended(grid, codes[:, a:b], SWEEPS) for s, (a, b) in zip(target.strips, moment.spans())], dim=1
        )
        now = float(target.errors(grid.values(found)).sum())
        if not now < error:
            break
        codes, parameters, gained, error = found, moved, error - now, now
        if gained < 2e-3 * error:
            break
    return codes, parameters


def _moved(
    kind: BlockType, grid: ScaledGrid, weight: torch.Tensor, codes: torch.Tensor, parameters: Parameters,
    moment: Moment,
) -> Parameters:  # fmt: skip
    entries = grid.table[codes.long()]
    state = _State(kind, grid, parameters)
    residual = weight - grid.values(codes)
    for (a, b), block in zip(moment.spans(), moment.blocks):
        h = block.to(weight.device)
        pull = residual[:, a:b] @ h
        for g in range(a // kind.group, b // kind.group):
            at = slice(g * kind.group - a, (g + 1) * kind.group - a)
            change = state.move_group(g, entries[:, g * kind.group : (g + 1) * kind.group], pull[:, at], h[at, at])
            pull.addmm_(change, h[at], alpha=-1)
    return state.parameters()


@dataclass
class _Step:
    """The best multiple of a direction u [rows, k]: of Σ (r − t·u)·H·(r − t·u)ᵀ, whose gradient is r·H."""

    above: torch.Tensor
    below: torch.Tensor

    @classmethod
    def along(cls, direction: torch.Tensor, pull: torch.Tensor, h: torch.Tensor) -> _Step:
        return cls((direction * pull).sum(dim=1), ((direction @ h) * direction).sum(dim=1))

    @property
    def best(self) -> torch.Tensor:
        return torch.where(self.below > 0, self.above / self.below.clamp(min=1e-30), 0.0)

    def worth(self, size: torch.Tensor) -> torch.Tensor:
        """``size`` [rows] where such a step lowers the error, 0 elsewhere."""
        return torch.where(2 * self.above * size > self.below * size.square(), size, 0.0)


class _State:
    """Scales and offsets of all groups while they are moved."""

    def __init__(self, kind: BlockType, grid: ScaledGrid, parameters: Parameters) -> None:
        self._kind, self._given = kind, parameters
        self._scale, self._offset = grid.scale.clone(), grid.offset.clone()
        self._per = kind.block // kind.group
        self._minima: torch.Tensor | None = None
        if kind.scales is not None:
            scales, minima = unpacked_scales(kind, parameters["scales"])
            self._scales = scales.flatten(1).clone()
            self._minima = None if minima is None else minima.flatten(1).clone()

    def move_group(self, g: int, entries: torch.Tensor, pull: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Move scale and offset of group ``g``; returns the change of its values [rows, group].

        ``entries`` [rows, group]: the table's entries that its codes name; ``pull``: the error's gradient there.
        """
        step = _Step.along(entries, pull, h)
        by = step.worth(self._scale_near(g, self._scale[:, g] + step.best) - self._scale[:, g])
        self._take_scale(g, by)
        change = by[:, None] * entries
        if self._kind.minimum:
            ones = torch.ones_like(entries)
            step = _Step.along(ones, pull - change @ h, h)
            by = step.worth(self._offset_near(g, self._offset[:, g] + step.best) - self._offset[:, g])
            self._take_offset(g, by)
            change = change + by[:, None]
        return change

    def parameters(self) -> Parameters:
        """As stored."""
        kind, given = self._kind, self._given
        if kind.scales is None:
            return {"d": half(self._scale), **({"m": half(self._offset)} if kind.minimum else {})}
        minima = None if self._minima is None else self._minima.unflatten(1, (-1, self._per))
        return {**given, "scales": packed_scales(kind, self._scales.unflatten(1, (-1, self._per)), minima)}

    def _scale_near(self, g: int, wanted: torch.Tensor) -> torch.Tensor:
        """The scale nearest to a wanted one that can be stored [rows]."""
        if self._kind.scales is None:
            return half(wanted).float()
        d = self._of_block("d", g)
        return d * self._integer(wanted, d)

    def _offset_near(self, g: int, wanted: torch.Tensor) -> torch.Tensor:
        if self._kind.scales is None:
            return half(wanted).float()
        dmin = self._of_block("dmin", g)
        return -(dmin * self._integer(-wanted, dmin))

    def _take_scale(self, g: int, by: torch.Tensor) -> None:
        self._scale[:, g] += by
        if self._kind.scales is not None:
            self._scales[:, g] = self._integer(self._scale[:, g], self._of_block("d", g), self._scales[:, g])

    def _take_offset(self, g: int, by: torch.Tensor) -> None:
        self._offset[:, g] += by
        if self._minima is not None:
            self._minima[:, g] = self._integer(-self._offset[:, g], self._of_block("dmin", g), self._minima[:, g])

    def _of_block(self, name: str, g: int) -> torch.Tensor:
        return self._given[name][:, g // self._per].float()

    def _integer(self, number: torch.Tensor, unit: torch.Tensor, otherwise: torch.Tensor | None = None) -> torch.Tensor:
        """The integer of the type's range that times ``unit`` is nearest; ``otherwise`` where the unit is 0."""
        assert self._kind.scales is not None
        found = torch.round(number / torch.where(unit == 0, 1.0, unit)).clamp(*self._kind.scales)
        return torch.where(unit == 0, 0.0 if otherwise is None else otherwise, found)
