"""From units that were chosen for, layers, parts, and layers with copies, to the modules that stand for them."""

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
    """Quantized layers by module name for values by unit name (``MODULE`` or ``MODULE[a:b]``).

    ``copies`` of a module get the very layer that it gets. Raises :class:`Qua2SeDiMoError` if parts are missing, or
    values do not fit.
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
    """For every module that is tied to others: all of them, in the denoiser's order.

    Other names of one and the same module are left out. Raises :class:`Qua2SeDiMoError` unless tied modules have equal
    weights and biases.
    """
    order = {name: i for i, name in enumerate(modules)}
    found: dict[str, tuple[str, ...]] = {}
    for name, others in copies.items():
        group = tuple(sorted((n for n in (name, *others) if n in order), key=order.__getitem__))
        for other in group[1:]:
            if not _equal(modules[group[0]], modules[other]):
                raise Qua2SeDiMoError(
                    f"layers '{group[0]}' and '{other}' share a weight but not the bias, or are no copies",
                    "Leave these two layers unquantized.",
                )
        found |= dict.fromkeys(group, group)
    return found


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("weight", "bias")]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    return all(a is b or torch.equal(a, b) for a, b in pairs if a is not None)
