"""Block reconstruction with learned rounding: Q-Diffusion (Li et al., ICCV 2023, arXiv:2302.04304), weights only.

Calibration data are calls at all time steps of images that the full-precision model makes (its §4.1). Blocks, here a
transformer block, a ResNet, or a layer outside of both, are taken in the order in which they run. The roundings of all
weights of a block are learned together, to make ‖B(x̂; Ŵ) − B(x; W)‖² small: x̂ is what the block sees behind quantized
predecessors, x what it sees in full precision. Rounding is AdaRound's (:mod:`rivals.adaround`). A layer that reads the
concatenation of a skip connection has a grid for each part (its split shortcut quantization, §4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.sequential import segment_of
from qua2sedimo.statistics import RecordedCall
from rivals.adaround import soft, start
from rivals.uniform import Grid

_WARM, _FIRST, _LAST = 0.2, 20.0, 2.0  # share of the steps without regulariser; its β
_RATE, _WEIGHT = 0.03, 1.0  # of Adam; of the mean regulariser, beside an error in units of nearest rounding's

#: What a block was called with, and the floating-point tensors that it gave.
Seen = tuple[tuple[Any, ...], dict[str, Any], list[torch.Tensor]]


def reconstruct(
    denoiser: nn.Module, full: nn.Module, calls: Sequence[RecordedCall], units: Mapping[str, WeightLayer], bits: int,
    steps: int = 300,
) -> None:  # fmt: skip
    """Round the ``units`` of ``denoiser`` in place, block by block; ``full`` is a copy of it that stays as it is."""
    blocks: dict[str, list[WeightLayer]] = {}
    for unit in units.values():
        blocks.setdefault(segment_of(unit.module, denoiser), []).append(unit)
    for name in order_of(denoiser, calls[0], blocks):
        learn(denoiser.get_submodule(name), name, blocks[name], seen(denoiser, calls, name), seen(full, calls, name),
              bits, steps)  # fmt: skip
        for unit in blocks[name]:
            for copy in unit.copies:
                denoiser.get_submodule(copy).weight.data.copy_(denoiser.get_submodule(unit.module).weight.data)


def order_of(denoiser: nn.Module, call: RecordedCall, names: Mapping[str, Any]) -> list[str]:
    """Blocks in the order in which a call runs them; those that it does not run are left out."""
    order: dict[str, None] = {}
    handles = [
        denoiser.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
        for name in names
    ]
    with torch.no_grad():
        call.run(denoiser)
    for handle in handles:
        handle.remove()
    return list(order)


def seen(denoiser: nn.Module, calls: Sequence[RecordedCall], name: str) -> list[Seen]:
    """What a block is called with in all calls."""
    found: list[Seen] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found.append((*pytree.tree_map(_copied, (args, kwargs)), floating(output)))

    handle = denoiser.get_submodule(name).register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        for call in calls:
            call.run(denoiser)
    handle.remove()
    return found


def learn(
    block: nn.Module, name: str, units: Sequence[WeightLayer], inputs: Sequence[Seen], targets: Sequence[Seen],
    bits: int, steps: int,
) -> float:  # fmt: skip
    """Learn the roundings of a block together, and write them; returns the error in units of nearest rounding's."""
    rounded = {unit.name: _Rounded(_rows(block, name, unit), bits) for unit in units}

    def weights(how: str) -> dict[str, torch.Tensor]:
        whole = {_place(unit, name): block.get_submodule(_inside(unit, name)).weight.detach().clone() for unit in units}
        for unit in units:
            made = getattr(rounded[unit.name], how)().view(unit.shape)
            place = _place(unit, name)
            whole[place] = made if unit.span is None else _with_part(whole[place], unit.span, made)
        return whole

    def error(number: int, of: Mapping[str, torch.Tensor]) -> torch.Tensor:
        args, kwargs, _ = inputs[number]
        made = floating(functional_call(block, dict(of), args, kwargs))
        return torch.stack([(a - b).square().sum() for a, b in zip(made, targets[number][2])]).sum()

    with torch.no_grad():
        near = weights("nearest")
        before = [float(error(i, near)) for i in range(len(inputs))]
    unit_error = max(sum(before) / len(before), 1e-30)
    adam = torch.optim.Adam([one.v for one in rounded.values()], lr=_RATE)
    chance = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for step in range(steps):
            number = int(torch.randint(len(inputs), (), generator=chance))
            loss = error(number, weights("soft")) / unit_error
            after = (step / steps - _WARM) / (1 - _WARM)
            if after >= 0:
                beta = _FIRST + (_LAST - _FIRST) * after
                loss = loss + _WEIGHT * torch.stack([one.undecided(beta) for one in rounded.values()]).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    with torch.no_grad():
        made = weights("hard")
        after_all = sum(float(error(i, made)) for i in range(len(inputs))) / len(inputs)
        made, kept = (made, after_all) if after_all < unit_error else (near, unit_error)
        for unit in units:
            block.get_submodule(_inside(unit, name)).weight.data.copy_(made[_place(unit, name)])
    return kept / unit_error


class _Rounded:
    """Rows [rows, n] whose roundings are learned: up or down from the levels of a grid."""

    def __init__(self, rows: torch.Tensor, bits: int) -> None:
        self._rows, self._grid = rows, Grid.best(rows, bits)
        self._below = torch.floor(rows / self._grid.scale)
        self.v = start(rows / self._grid.scale - self._below).requires_grad_()

    def nearest(self) -> torch.Tensor:
        return self._grid.nearest(self._rows)

    def soft(self) -> torch.Tensor:
        return self._at(soft(self.v))

    def hard(self) -> torch.Tensor:
        return self._at((soft(self.v) >= 0.5).float())

    def undecided(self, beta: float) -> torch.Tensor:
        """The mean of 1 − |2h − 1|^β."""
        return (1 - (2 * soft(self.v) - 1).abs().pow(beta)).mean()

    def _at(self, up: torch.Tensor) -> torch.Tensor:
        grid = self._grid
        steps = torch.minimum(torch.maximum(self._below + up, -grid.zero), 2**grid.bits - 1 - grid.zero)
        return grid.scale * steps


def floating(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if torch.is_tensor(leaf) and leaf.is_floating_point()]


def _rows(block: nn.Module, name: str, unit: WeightLayer) -> torch.Tensor:
    weight = block.get_submodule(_inside(unit, name)).weight.detach().float()
    part = weight if unit.span is None else weight[:, unit.span[0] : unit.span[1]]
    return part.reshape(len(part), -1)


def _inside(unit: WeightLayer, block: str) -> str:
    """The unit's module within its block; "" if it is the block."""
    return unit.module.removeprefix(block).removeprefix(".")


def _place(unit: WeightLayer, block: str) -> str:
    return f"{_inside(unit, block)}.weight".removeprefix(".")


def _with_part(whole: torch.Tensor, span: tuple[int, int], part: torch.Tensor) -> torch.Tensor:
    return torch.cat([whole[:, : span[0]], part, whole[:, span[1] :]], dim=1)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if torch.is_tensor(leaf) else leaf
