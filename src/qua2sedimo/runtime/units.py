"""From quantized units (layers, parts, layers with copies) to the modules that replace them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from qua2sedimo.denoisers import parse_unit
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.runtime.modules import QuantizedLayer, quantized_module
from qua2sedimo.runtime.table import layer_modules

Copies = Mapping[str, Sequence[str]]
NO_COPIES: Copies = MappingProxyType({})


def quantized_layers(
    denoiser: nn.Module, values: Mapping[str, QuantizedWeight], copies: Copies = NO_COPIES
) -> dict[str, QuantizedLayer]:
    """Quantized layers by module name, from quantized weights by unit name (``MODULE`` or ``MODULE[a:b]``).

    ``copies`` of a module share its layer object. Raises :class:`Qua2SeDiMoError` if parts are missing or a weight does
    not fit its layer.
    """
    modules = layer_modules(denoiser)
    groups = groups_of(modules, copies)
    parts: dict[str, list[tuple[tuple[int, int] | None, QuantizedWeight]]] = {}
    for unit, value in values.items():
        name, span = parse_unit(unit)
        parts.setdefault(name, []).append((span, value))
    layers: dict[str, QuantizedLayer] = {}
    for name, found in parts.items():
        layer = quantized_module(modules[name], sorted(found, key=lambda part: part[0] or (0, 0)))
        layers |= dict.fromkeys(groups.get(name, (name,)), layer)
    return layers


def groups_of(modules: Mapping[str, nn.Module], copies: Copies) -> dict[str, tuple[str, ...]]:
    """For every tied module, the names of all modules tied to it and its own, in the denoiser's order.

    Of several names of the same module only the first is used. Raises :class:`Qua2SeDiMoError` if tied modules differ
    in weight or bias.
    """
    order = {name: i for i, name in enumerate(modules)}
    found: dict[str, tuple[str, ...]] = {}
    for name, others in copies.items():
        group = tuple(sorted((n for n in (name, *others) if n in order), key=order.__getitem__))
        for other in group[1:]:
            if not _equal(modules[group[0]], modules[other]):
                raise Qua2SeDiMoError(
                    f"layers '{group[0]}' and '{other}' are given as copies, but differ in weight or bias",
                    "Leave these two layers unquantized.",
                )
        found |= dict.fromkeys(group, group)
    return found


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("weight", "bias")]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    return all(a is b or torch.equal(a, b) for a, b in pairs if a is not None)
