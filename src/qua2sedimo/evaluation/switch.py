"""Put configurations into a live denoiser, touching only the layers that change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from qua2sedimo.bank import Bank, stored_weight
from qua2sedimo.denoisers import WeightLayer, unit_weight, weight_modules
from qua2sedimo.options import Configuration, Option
from qua2sedimo.quantizers import METHODS, each

_UNCERTAIN = "uncertain"


class Switch:
    """Writes dequantized weights into a denoiser's layers, in place, and can put the original ones back.

    ``layers`` tells where the units of the bank's search space lie: whole weights, parts, or several copies.
    """

    def __init__(self, denoiser: nn.Module, bank: Bank, layers: Mapping[str, WeightLayer]) -> None:
        modules = weight_modules(denoiser)
        self._weights = {name: _places(modules, layers[name]) for name in bank.space.layers}
        self._originals = {name: places[0].clone() for name, places in self._weights.items()}
        self._bank = bank
        self._current: dict[str, Option | str | None] = dict.fromkeys(self._weights)

    def apply(self, configuration: Configuration) -> int:
        """Make the denoiser that of ``configuration``; returns the number of units rewritten."""
        changed = [(name, option) for name, option in configuration.items() if self._current[name] != option]
        # Until it is known that a unit was written whole it is neither old nor new: restore must not pass it over.
        self._current |= dict.fromkeys((name for name, _ in changed), _UNCERTAIN)
        for name, option in each(self._write, changed, torch.get_num_threads()):
            self._current[name] = option
        return len(changed)

    def restore(self) -> None:
        """Back to full precision."""
        for name, option in self._current.items():
            if option is not None:
                for weight in self._weights[name]:
                    weight.copy_(self._originals[name])
                self._current[name] = None

    def _write(self, change: tuple[str, Option]) -> tuple[str, Option]:
        name, option = change
        if option in self._bank.space.options[name]:
            value = self._bank.get(name, option)
        else:
            (value,) = METHODS[option.method].quantize(stored_weight(self._originals[name]), [option.bits])
        first, *copies = self._weights[name]
        value.dequantize(first)
        for weight in copies:
            weight.copy_(first)
        return change


def _places(modules: Mapping[str, nn.Module], layer: WeightLayer) -> list[torch.Tensor]:
    """Where the unit's weight lies: its own module, and copies that are modules of their own."""
    copies = [replace(layer, module=name) for name in layer.copies if name in modules]
    return [unit_weight(modules, place) for place in (layer, *copies)]
