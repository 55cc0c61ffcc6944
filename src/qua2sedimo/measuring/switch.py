"""Apply configurations to a live denoiser, rewriting only the layers that change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from qua2sedimo.bank import Bank, stored_weight
from qua2sedimo.denoisers import WeightLayer, unit_weight, weight_modules
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.originals import Originals, Source
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight, each

_UNCERTAIN = "uncertain"


class Switch:
    """Writes dequantized weights into a denoiser's layers, in place, and restores the original ones.

    ``layers`` locates the units of the bank's search space: whole weights, parts, or several copies. ``source`` reads
    original weights from files; without it, or where its bits differ from the denoiser's, they are copied
    (:class:`~qua2sedimo.measuring.originals.Originals`).
    """

    def __init__(
        self, denoiser: nn.Module, bank: Bank, layers: Mapping[str, WeightLayer], source: Source | None = None
    ) -> None:
        self._modules = weight_modules(denoiser)
        self._units = {name: layers[name] for name in bank.space.layers}
        self.originals = Originals({name: self._tensors(name)[0] for name in self._units}, source)
        self._bank = bank
        self._current: dict[str, Option | str | None] = dict.fromkeys(self._units)

    def apply(self, configuration: Mapping[str, Option]) -> int:
        """Write the weights of ``configuration``; returns the number of units rewritten.

        Layers that it does not name get full precision. Raises :class:`Qua2SeDiMoError` if it names an unknown layer.
        After any error, :meth:`restore` restores the units written before it.
        """
        unknown = [name for name in configuration if name not in self._units]
        if unknown:
            raise Qua2SeDiMoError(f"configuration names layer '{unknown[0]}', which is not in the search space")
        wanted = {name: configuration.get(name) for name in self._units}
        changed = [(name, option) for name, option in wanted.items() if self._current[name] != option]
        # A write that failed leaves a unit in an unknown state: restore must rewrite it.
        self._current |= dict.fromkeys((name for name, _ in changed), _UNCERTAIN)
        for name, option in each(self._write, changed, torch.get_num_threads()):
            self._current[name] = option
        return len(changed)

    def write(self, name: str, value: QuantizedWeight | None) -> None:
        """Write any quantized weight into a unit, or its original weight for None."""
        self._current[name] = _UNCERTAIN
        first, *copies = self._tensors(name)
        if value is None:
            first.copy_(self.originals(name))
            self._current[name] = None
        else:
            dequantize_weight(value, first)
        for weight in copies:
            weight.copy_(first)

    def restore(self) -> None:
        """Restore full precision."""
        self.apply({})

    def _write(self, change: tuple[str, Option | None]) -> tuple[str, Option | None]:
        name, option = change
        first, *copies = self._tensors(name)
        if option is None:
            first.copy_(self.originals(name))
        elif option in self._bank.space.options[name]:
            dequantize_weight(self._bank.get(name, option), first)
        else:
            (value,) = METHODS[option.method].quantize(stored_weight(self.originals(name)), [option.number])
            dequantize_weight(value, first)
        for weight in copies:
            weight.copy_(first)
        return change

    def _tensors(self, name: str) -> list[torch.Tensor]:
        """The tensors that hold a unit's weight now: in its module, and in copies that are separate modules.

        Offloading exchanges them at every call of the denoiser, so they are not kept.
        """
        layer = self._units[name]
        copies = [replace(layer, module=copy) for copy in layer.copies if copy in self._modules]
        return [unit_weight(self._modules, place) for place in (layer, *copies)]
