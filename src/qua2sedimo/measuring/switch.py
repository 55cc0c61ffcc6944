"""Apply configurations to a live denoiser, changing only the layers that change: as plain weights, or packed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from qua2sedimo.bank import Bank, stored_weight
from qua2sedimo.denoisers import WeightLayer, unit_weight, weight_modules, weight_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.originals import Originals, Source
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight, each
from qua2sedimo.runtime.modules import quantized_module
from qua2sedimo.runtime.replace import replace_layers

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
        #: Seconds that :meth:`apply` took so far, by ``clock``.
        self.seconds, self.clock = 0.0, time.perf_counter

    def apply(self, configuration: Mapping[str, Option]) -> int:
        """Write the weights of ``configuration``; returns the number of units rewritten.

        Layers that it does not name get full precision. Raises :class:`Qua2SeDiMoError` if it names an unknown layer.
        After any error, :meth:`restore` restores the units written before it.
        """
        began = self.clock()
        unknown = [name for name in configuration if name not in self._units]
        if unknown:
            raise Qua2SeDiMoError(f"configuration names layer '{unknown[0]}', which is not in the search space")
        wanted = {name: configuration.get(name) for name in self._units}
        changed = [(name, option) for name, option in wanted.items() if self._current[name] != option]
        # A write that failed leaves a unit in an unknown state: restore must rewrite it.
        self._current |= dict.fromkeys((name for name, _ in changed), _UNCERTAIN)
        for name, option in each(self._write, changed, self._threads()):
            self._current[name] = option
        self.seconds += self.clock() - began
        return len(changed)

    def write(self, name: str, value: QuantizedWeight | None) -> None:
        """Write any quantized weight into a unit, or its original weight for None."""
        self._current[name] = _UNCERTAIN
        self._set(name, value)
        if value is None:
            self._current[name] = None

    def restore(self) -> None:
        """Restore full precision."""
        self.apply({})

    def _threads(self) -> int:
        return torch.get_num_threads()

    def _write(self, change: tuple[str, Option | None]) -> tuple[str, Option | None]:
        name, option = change
        if option is None:
            self._set(name, None)
        elif option in self._bank.space.options[name]:
            self._set(name, self._bank.get(name, option))
        else:
            (value,) = METHODS[option.method].quantize(stored_weight(self.originals(name)), [option.number])
            self._set(name, value)
        return change

    def _set(self, name: str, value: QuantizedWeight | None) -> None:
        """Put a quantized weight into a unit and its copies, or its original weight for None."""
        first, *copies = self._tensors(name)
        if value is None:
            first.copy_(self.originals(name))
        else:
            dequantize_weight(value, first)
        for weight in copies:
            weight.copy_(first)

    def _tensors(self, name: str) -> list[torch.Tensor]:
        """The tensors that hold a unit's weight now: in its module, and in copies that are separate modules.

        Offloading exchanges them at every call of the denoiser, so they are not kept.
        """
        layer = self._units[name]
        copies = [replace(layer, module=copy) for copy in layer.copies if copy in self._modules]
        return [unit_weight(self._modules, place) for place in (layer, *copies)]


class PackedSwitch(Switch):
    """Puts layers that compute from packed weights in place of a denoiser's own, whose weights are freed meanwhile.

    So a configuration takes no more memory than its packed weights, which on a CPU are those mapped from the bank; it
    computes the same, and slower. Layers in full precision, whole or in part, have plain weights.
    """

    def __init__(
        self, denoiser: nn.Module, bank: Bank, layers: Mapping[str, WeightLayer], source: Source | None = None
    ) -> None:
        super().__init__(denoiser, bank, layers, source)
        self._denoiser = denoiser
        self._values: dict[str, QuantizedWeight | None] = dict.fromkeys(self._units)
        self._units_of: dict[str, list[str]] = {}
        for name, unit in self._units.items():
            self._units_of.setdefault(unit.module, []).append(name)
        self._packed: set[str] = set()  # modules that compute from packed weights
        self._devices = {name: weight_of(module).device for name, module in self._modules.items()}

    def _set(self, name: str, value: QuantizedWeight | None) -> None:
        self._values[name] = value
        unit = self._units[name]
        units = self._units_of[unit.module]
        parts = [(self._units[one].span, found) for one in units if (found := self._values[one]) is not None]
        places = (unit.module, *(copy for copy in unit.copies if copy in self._modules))
        if len(parts) == len(units):
            for place in places:
                self._pack(place, parts)
        elif any(place in self._packed for place in places):
            for place in places:
                self._unpack(place)
            for one in units:  # of the parts, some may be quantized
                super()._set(one, self._values[one])
        else:
            super()._set(name, value)

    def _threads(self) -> int:
        return 1  # replacing modules takes no time

    def _pack(self, place: str, parts: list[tuple[tuple[int, int] | None, QuantizedWeight]]) -> None:
        own = self._modules[place]
        replace_layers(self._denoiser, {place: quantized_module(own, parts)})
        own.weight = _empty(own, torch.device("meta"))
        self._packed.add(place)

    def _unpack(self, place: str) -> None:
        """The module itself, with a weight that is yet to be written."""
        own = self._modules[place]
        own.weight = _empty(own, self._devices[place])
        replace_layers(self._denoiser, {place: own})
        self._packed.discard(place)


def _empty(module: nn.Module, device: torch.device) -> nn.Parameter:
    """A weight as the module's on this device, with no values yet."""
    return nn.Parameter(torch.empty_like(weight_of(module), device=device), requires_grad=False)
