"""The inputs of a layer as rows, one per position, with columns in the order of its weight as [channels, n]."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from qua2sedimo.denoisers import WeightLayer


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The input tensor of a weight module's call."""
    found = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(found, torch.Tensor)
    return found


def positions(module: Any, x: torch.Tensor) -> int:
    """How many positions (tokens, pixels) a weight module computes for an input [batch, …]."""
    if isinstance(module, nn.Linear):
        return x.numel() // x.shape[-1]
    places = 1
    sizes, batch = x.shape[-len(module.kernel_size) :], x.shape[0] if x.dim() == len(module.kernel_size) + 2 else 1
    for size, k, s, p, d in zip(sizes, module.kernel_size, module.stride, _padding(module), module.dilation):
        places *= (size + sum(p) - d * (k - 1) - 1) // s + 1
    return batch * places


def unit_columns(
    module: nn.Module, unit: WeightLayer, x: torch.Tensor, most: int, chance: torch.Generator,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(the unit's inputs as fp32 rows [positions, n], the number of the sample of each row [positions]).

    At most ``most`` positions, drawn by ``chance``. ``x`` is the module's input; ``keep``, boolean and shaped as the
    input without its last dimension, leaves out positions of a Linear layer. Of a convolution, whole samples are drawn
    and unfolded until ``most`` is reached; of a grouped one, what each group sees is a row of its own.
    """
    x = x.detach()
    if not x.numel():  # some layers are called also where there is nothing, such as an earlier piece of a film
        return torch.zeros(0, math.prod(unit.shape[1:]), device=x.device), torch.arange(0)
    if isinstance(module, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        numbers = torch.arange(len(rows))
        if keep is not None:
            numbers = numbers[keep.reshape(-1).cpu()]
        numbers = numbers[_some(len(numbers), most, chance)] if len(numbers) > most else numbers
        if len(numbers) < len(rows):
            rows = rows[numbers.to(rows.device)]
        rows = rows if unit.span is None else rows[:, unit.span[0] : unit.span[1]]
        return rows.float(), numbers // max(1, x.numel() // x.shape[-1] // len(x))
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if x.dim() == len(module.kernel_size) + 1:
        x = x[None]
    if unit.span is not None:
        x = x[:, unit.span[0] : unit.span[1]]
    each = max(1, positions(module, x) // len(x))
    wanted = max(2, math.ceil(most / each))
    samples = _some(len(x), wanted, chance) if wanted < len(x) else torch.arange(len(x))
    rows = unfolded(module, x[samples.to(x.device)].float())
    rows = rows.reshape(-1, rows.shape[1] // module.groups)
    numbers = samples.repeat_interleave(len(rows) // len(samples))
    if len(rows) > most:
        drawn = _some(len(rows), most, chance)
        rows, numbers = rows[drawn.to(rows.device)], numbers[drawn]
    return rows, numbers


def unfolded(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """What each output position of a convolution sees: [positions, channels · kernel] of ``x`` [batch, channels, …].

    Grouped convolutions are unfolded over all channels.
    """
    pads = [p for pair in reversed(_padding(module)) for p in pair]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, pads, mode=mode) if any(pads) else x
    for axis, (k, s, d) in enumerate(zip(module.kernel_size, module.stride, module.dilation)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]  # one axis of kernel positions more, at the end
    dims = len(module.kernel_size)
    order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
    return x.permute(order).reshape(-1, x.shape[1] * math.prod(module.kernel_size))


def _padding(module: Any) -> list[tuple[int, int]]:
    """Padding before and after each axis; "same" padding of an odd total has the larger half after."""
    if isinstance(module.padding, str):
        same = module.padding == "same"
        totals = [d * (k - 1) if same else 0 for k, d in zip(module.kernel_size, module.dilation)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in module.padding]


def _some(count: int, most: int, chance: torch.Generator) -> torch.Tensor:
    return torch.randperm(count, generator=chance)[:most]
