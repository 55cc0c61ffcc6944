"""What each option of each layer does to the guided output, to first order, with the layer's own weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.statistics.calls import RecordedCall, frozen
from qua2sedimo.statistics.gradients import checkpointed
from qua2sedimo.system.memory import is_out_of_memory

#: What each option of a unit gets wrong of its weight: tensors in its shape.
Errors = Callable[[str], Sequence[torch.Tensor]]


def output_changes(
    denoiser: nn.Module, layers: Mapping[str, WeightLayer], calls: Sequence[RecordedCall], errors: Errors,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, torch.Tensor] | None:  # fmt: skip
    """⟨∂L/∂W, Ŵ − W⟩ of every option of the units ``layers`` in each call: fp32 [options, calls] by unit.

    L is a call's guided output times random signs, so that the mean of squares over calls is the squared change of the
    guided output that is expected to first order. In contrast to Σ_c G_c·e_c it holds however the errors of different
    positions and channels, with and without the prompt, go together. Units that no call reaches are left out.

    The errors of all units are in memory together, as bf16. A call that does not fit is run in halves; None if one
    sample does not fit either, or where weights are elsewhere until they are used (offloading).
    """
    if any(p.is_meta for p in denoiser.parameters()):
        return None
    found: dict[str, torch.Tensor] = {}
    try:
        with frozen(denoiser), checkpointed(denoiser):
            probe = _Probe(denoiser, layers, errors)
            for number, call in enumerate(calls):
                for unit, changes in probe(call).items():
                    found.setdefault(unit, torch.zeros(len(changes), len(calls)))[:, number] = changes
                progress(number + 1, len(calls))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return found


class _Probe:
    """The changes that the options of some units make in one call."""

    def __init__(self, denoiser: nn.Module, units: Mapping[str, WeightLayer], errors: Errors) -> None:
        self._denoiser, self._units = denoiser, units
        self._errors = {unit: torch.stack([e.to(torch.bfloat16).reshape(-1) for e in errors(unit)]) for unit in units}
        weights = {unit: [_weight(denoiser, name) for name in (u.module, *u.copies)] for unit, u in units.items()}
        self._weights = {unit: list({id(w): w for w in of}.values()) for unit, of in weights.items()}
        self._every = list({id(w): w for of in self._weights.values() for w in of}.values())

    def __call__(self, call: RecordedCall) -> dict[str, torch.Tensor]:
        """[options] of each unit that the call reaches."""
        try:
            gradients = self._gradients(call)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or call.samples < 2:
                raise
            first, second = (self(half) for half in call.halves())  # the change is linear in the samples
            return {u: first.get(u, 0) + second.get(u, 0) for u in {**first, **second}}  # type: ignore[misc]
        found: dict[str, torch.Tensor] = {}
        for unit, layer in self._units.items():
            reached = [g for w in self._weights[unit] if (g := gradients[id(w)]) is not None]
            if reached:
                gradient = torch.stack([g.float() for g in reached]).sum(dim=0)
                own = gradient if layer.span is None else gradient[:, layer.span[0] : layer.span[1]]
                self._errors[unit] = errors = self._errors[unit].to(own.device)
                own = own.reshape(-1)
                found[unit] = torch.stack([e.float() @ own for e in errors]).cpu()
        return found

    def _gradients(self, call: RecordedCall) -> dict[int, torch.Tensor | None]:
        """∂L/∂W by the identity of the tensor W, or None if the call does not reach it."""
        for weight in self._every:
            weight.requires_grad_(True)
        try:
            with torch.enable_grad():
                outputs = call.run(self._denoiser)
                pairs = [(o, g.to(o.device, o.dtype)) for o, g in zip(outputs, call.cotangents) if o.requires_grad]
                found: Sequence[torch.Tensor | None] = [None] * len(self._every)
                if pairs:
                    found = torch.autograd.grad(
                        [o for o, _ in pairs], self._every, [g for _, g in pairs], allow_unused=True
                    )
        finally:
            for weight in self._every:
                weight.requires_grad_(False)
        return {id(weight): gradient for weight, gradient in zip(self._every, found)}


def _weight(denoiser: nn.Module, name: str) -> torch.Tensor:
    weight = denoiser.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight
