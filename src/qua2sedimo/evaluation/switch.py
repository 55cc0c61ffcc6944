"""Put configurations into a live denoiser, touching only the layers that change."""

from __future__ import annotations

import torch
from torch import nn

from qua2sedimo.bank import Bank, stored_weight
from qua2sedimo.denoisers import weight_modules, weight_of
from qua2sedimo.options import Configuration, Option
from qua2sedimo.quantizers import METHODS, each


class Switch:
    """Writes dequantized weights into a denoiser's layers, in place, and can put the original ones back."""

    def __init__(self, denoiser: nn.Module, bank: Bank) -> None:
        modules = weight_modules(denoiser)
        self._weights: dict[str, torch.Tensor] = {name: weight_of(modules[name]) for name in bank.space.layers}
        self._originals = {name: weight.clone() for name, weight in self._weights.items()}
        self._bank = bank
        self._current: dict[str, Option | None] = dict.fromkeys(self._weights)

    def apply(self, configuration: Configuration) -> int:
        """Make the denoiser that of ``configuration``; returns the number of layers rewritten."""
        changed = [(name, option) for name, option in configuration.items() if self._current[name] != option]
        for name, option in each(self._write, changed, torch.get_num_threads()):
            self._current[name] = option
        return len(changed)

    def restore(self) -> None:
        """Back to full precision."""
        for name, option in self._current.items():
            if option is not None:
                self._weights[name].copy_(self._originals[name])
                self._current[name] = None

    def _write(self, change: tuple[str, Option]) -> tuple[str, Option]:
        name, option = change
        if option in self._bank.space.options[name]:
            value = self._bank.get(name, option)
        else:
            (value,) = METHODS[option.method].quantize(stored_weight(self._originals[name]), [option.bits])
        value.dequantize(self._weights[name])
        return change
