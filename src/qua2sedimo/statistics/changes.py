"""What each option of each layer does to the guided output, to first order, with the layer's own weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.statistics.calls import RecordedCall, frozen
from qua2sedimo.statistics.gradients import checkpointed, without_backward
from qua2sedimo.system.memory import is_out_of_memory

#: ⟨G, Ŵ − W⟩ of each option of a unit, [options]; G is fp32 in the shape of its weight. Asked for in every call.
Products = Callable[[str, torch.Tensor], torch.Tensor]


def output_changes(
    denoiser: nn.Module, layers: Mapping[str, WeightLayer], calls: Sequence[RecordedCall], products: Products,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, torch.Tensor] | None:  # fmt: skip
    """⟨∂L/∂W, Ŵ − W⟩ of every option of the units ``layers`` in each call: fp32 [options, calls] by unit.

    L is a call's guided output times random signs, so that the mean of squares over calls is the squared change of the
    guided output that is expected to first order. In contrast to Σ_c G_c·e_c it holds however the errors of different
    positions and channels, with and without the prompt, go together. Units that no call reaches are left out.

    The gradient of a weight is dropped as soon as its units are done, so that there is one at a time. A call that does
    not fit is run in halves; None if one sample does not fit either, where an operation has no backward pass, or where
    weights are elsewhere until they are used (offloading).
    """
    if any(p.is_meta for p in denoiser.parameters()):
        return None
    found: dict[str, torch.Tensor] = {}
    try:
        with frozen(denoiser), checkpointed(denoiser):
            probe = _Probe(denoiser, layers, products)
            for number, call in enumerate(calls):
                for unit, changes in probe(call).items():
                    found.setdefault(unit, torch.zeros(len(changes), len(calls)))[:, number] = changes
                progress(number + 1)
    except (RuntimeError, MemoryError) as error:
        if not without_backward(error):
            raise
        return None
    return found


class _Probe:
    """The changes that the options of some units make in one call."""

    def __init__(self, denoiser: nn.Module, units: Mapping[str, WeightLayer], products: Products) -> None:
        self._denoiser, self._units, self._products = denoiser, units, products
        weights = {unit: [_weight(denoiser, name) for name in (u.module, *u.copies)] for unit, u in units.items()}
        self._weights = {unit: list({id(w): w for w in of}.values()) for unit, of in weights.items()}
        self._every = list({id(w): w for of in self._weights.values() for w in of}.values())
        self._of_weight: dict[int, list[str]] = {}
        for unit, of in self._weights.items():
            for weight in of:
                self._of_weight.setdefault(id(weight), []).append(unit)

    def __call__(self, call: RecordedCall) -> dict[str, torch.Tensor]:
        """[options] of each unit that the call reaches."""
        try:
            return self._changes(call)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or call.samples < 2:
                raise
            first, second = (self(half) for half in call.halves())  # the change is linear in the samples
            return {u: first.get(u, 0) + second.get(u, 0) for u in {**first, **second}}  # type: ignore[misc]

    def _changes(self, call: RecordedCall) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        shared: dict[str, dict[int, torch.Tensor]] = {}  # gradients of units with several weights, until all are known

        def arrived(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            gradient, weight.grad = weight.grad.detach().float(), None
            for unit in self._of_weight[id(weight)]:
                if len(self._weights[unit]) == 1:
                    changes = self._of(unit, gradient)
                    found[unit] = found[unit] + changes if unit in found else changes
                else:
                    before = shared.setdefault(unit, {}).get(id(weight))
                    shared[unit][id(weight)] = gradient if before is None else before + gradient

        handles = []
        for weight in self._every:
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(arrived))
        try:
            with torch.enable_grad():
                outputs = call.run(self._denoiser)
                pairs = [(o, g.to(o.device, o.dtype)) for o, g in zip(outputs, call.cotangents) if o.requires_grad]
                if pairs:
                    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        finally:
            for handle in handles:
                handle.remove()
            for weight in self._every:
                weight.requires_grad_(False)
                weight.grad = None
        for unit, gradients in shared.items():
            in_order = [gradients[id(w)] for w in self._weights[unit] if id(w) in gradients]
            found[unit] = self._of(unit, torch.stack(in_order).sum(dim=0))
        return found

    def _of(self, unit: str, gradient: torch.Tensor) -> torch.Tensor:
        """[options]: the gradient of the unit's weight times what each option gets wrong."""
        span = self._units[unit].span
        return self._products(unit, gradient if span is None else gradient[:, span[0] : span[1]])


def _weight(denoiser: nn.Module, name: str) -> torch.Tensor:
    weight = denoiser.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight
