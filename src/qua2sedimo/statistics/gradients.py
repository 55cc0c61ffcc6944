"""Squared gradients of the guided output with respect to what each layer computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.statistics.calls import RecordedCall, frozen
from qua2sedimo.system.memory import is_out_of_memory

#: From this many weights on, activations are computed again in the backward pass instead of kept.
_LARGE = 300_000_000


def squared_gradients(
    denoiser: nn.Module, layers: Mapping[str, WeightLayer], calls: Sequence[RecordedCall],
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, torch.Tensor] | None:  # fmt: skip
    """G of each module: fp64 [output channels], the mean over calls of Σ g² over samples and positions, where g is the
    gradient of the guided output times random signs (one backward pass a call). Copies of a module count with it.

    The cost of an option is Σ_c G_c·e_c with e_c its output error in channel c: the squared change of the guided output
    that is expected to first order, if errors at different positions are independent. A call whose backward pass does
    not fit into memory is run in halves, down to one sample; None if that does not fit either, where no gradients reach
    the denoiser's outputs, or where one of its operations has no backward pass.
    """
    totals: dict[str, torch.Tensor] = {}
    try:
        for number, found in enumerate(of_each_call(denoiser, layers, calls), start=1):
            add_gradients(totals, found)
            progress(number)
    except (RuntimeError, MemoryError) as error:
        if not without_backward(error):
            raise
        return None
    return {name: total / len(calls) for name, total in totals.items()} or None


def add_gradients(totals: dict[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Add those of a call to the sum of those before; in the order of the calls, whoever computed them."""
    for name, value in found.items():
        totals[name] = totals[name] + value if name in totals else value


def of_each_call(
    denoiser: nn.Module, layers: Mapping[str, WeightLayer], calls: Sequence[RecordedCall]
) -> Iterator[dict[str, torch.Tensor]]:
    """Σ g² of each call by module, fp64 [output channels]; what fails is raised."""
    found: dict[str, torch.Tensor] = {}  # of the call, or part of a call, that is run
    owner = {name: layer.module for layer in layers.values() for name in (layer.module, *layer.copies)}
    handles = [
        denoiser.get_submodule(name).register_forward_hook(_hook(module, found)) for name, module in owner.items()
    ]
    try:
        with frozen(denoiser), checkpointed(denoiser), torch.enable_grad():
            for call in calls:
                total: dict[str, torch.Tensor] = {}
                waiting = [call]
                while waiting:
                    part = waiting.pop()
                    found.clear()
                    try:
                        _backward(denoiser, part)
                    except (RuntimeError, MemoryError) as error:
                        if not is_out_of_memory(error) or part.samples < 2:
                            raise
                        waiting += reversed(part.halves())
                        continue
                    add_gradients(total, found)
                yield total
    finally:
        for handle in handles:
            handle.remove()


def without_backward(error: BaseException) -> bool:
    """Whether a backward pass does not fit into memory, or an operation has none here: flex attention has none on a
    CPU."""
    return is_out_of_memory(error) or isinstance(error, NotImplementedError)


@contextmanager
def checkpointed(denoiser: nn.Module) -> Iterator[None]:
    """Within, a large denoiser computes activations again in the backward pass instead of keeping them."""
    weights = sum(p.numel() for p in denoiser.parameters())
    changes = (
        weights > _LARGE
        and getattr(denoiser, "_supports_gradient_checkpointing", False)
        and not getattr(denoiser, "is_gradient_checkpointing", False)
    )
    if changes:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    try:
        yield
    finally:
        if changes:
            denoiser.disable_gradient_checkpointing()  # type: ignore[operator]


def _backward(denoiser: nn.Module, call: RecordedCall) -> None:
    outputs = call.run(denoiser)
    pairs = [(o, g.to(o.device, o.dtype)) for o, g in zip(outputs, call.cotangents) if o.requires_grad]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])


def _hook(module_name: str, totals: dict[str, torch.Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        # Without gradients so far, this layer is where they end.
        output = output if output.requires_grad else output.detach().requires_grad_()

        def add(gradient: torch.Tensor | None) -> None:
            if gradient is None:  # behind an operation that passes none on
                return
            axis = gradient.dim() - 1 if isinstance(module, nn.Linear) else 1
            others = [i for i in range(gradient.dim()) if i != axis]
            squares = gradient.detach().float().square()
            found = squares.sum(dim=others, dtype=torch.float32).double().cpu() if others else squares.double().cpu()
            totals[module_name] = totals.get(module_name, torch.zeros_like(found)) + found

        output.register_hook(add)
        return output

    return hook
