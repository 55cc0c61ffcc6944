"""The layer table: how each layer of a denoiser is stored, in one character per layer.

The layers are the Linear and Conv modules that the model's class builds from ``config.json``, sorted by name. The
table therefore needs neither names nor shapes, and the shapes of all packed tensors follow from config and table.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers.layers import WEIGHT_MODULES
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.runtime.modules import (
    DAMAGED,
    Part,
    QuantizedLayer,
    Storage,
    empty_quantized_module,
)
from qua2sedimo.runtime.replace import replace_layers

_PLAIN = "."
_SAME = "="
_LETTERS = string.ascii_letters + string.digits + "!#$%&()*+,-/:;<>?@[]^_{|}~"
_MOST_LAYERS = 100_000


@dataclass(frozen=True)
class LayerTable:
    """The storage of all weight layers of a denoiser, in the order of their names.

    ``layers`` has one letter per layer: an entry of ``storages``, ``.`` for an unquantized layer, ``=`` for a copy of
    another layer; a split layer has one letter per part. ``cuts`` are ``(layer, end of part, end of part, …)`` and
    ``ties`` are ``(layer, copy, copy, …)``, with layers as positions. ``names`` is a digest of all layer names, which
    detects a diffusers version with other names.
    """

    storages: tuple[Storage, ...]
    layers: str
    names: str
    cuts: tuple[tuple[int, ...], ...] = ()
    ties: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls,
        layers: Iterable[str],
        stored: Mapping[str, Sequence[Part]],
        copies: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> LayerTable:
        """The table of ``layers``; those in ``stored`` are quantized, ``copies`` maps a stored layer to its copies."""
        ordered = sorted(layers)
        place = {name: i for i, name in enumerate(ordered)}
        storages = tuple(sorted({part.storage for parts in stored.values() for part in parts}, key=str))
        letters = {storage: _LETTERS[i] for i, storage in enumerate(storages)}
        same = {copy for names in copies.values() for copy in names}
        row, cuts = [], []
        for i, name in enumerate(ordered):
            parts = stored.get(name, ())
            row.append("".join(letters[part.storage] for part in parts) or (_SAME if name in same else _PLAIN))
            if len(parts) > 1:
                cuts.append((i, *(part.span[1] for part in parts if part.span is not None)))
        ties = sorted((place[name], *sorted(place[copy] for copy in names)) for name, names in copies.items() if names)
        return cls(storages, "".join(row), digest(ordered), tuple(cuts), tuple(ties))

    @classmethod
    def parse(cls, options: Any, layers: Any, names: Any, cuts: Any, ties: Any) -> LayerTable:
        """Parse the entries of ``quantization_config``; raises :class:`Qua2SeDiMoError` on invalid ones."""
        if not isinstance(options, list) or len(options) > len(_LETTERS):
            raise Qua2SeDiMoError("quantization_config: 'options' must be a list of options", DAMAGED)
        storages = tuple(Storage.parse(text) for text in options)
        known = {_PLAIN, _SAME, *_LETTERS[: len(storages)]}
        if not isinstance(layers, str) or len(layers) > _MOST_LAYERS or not known.issuperset(layers):
            raise Qua2SeDiMoError("quantization_config: 'layers' must have one option letter per layer", DAMAGED)
        if not isinstance(names, str):
            raise Qua2SeDiMoError("quantization_config: 'names' must be a digest", DAMAGED)
        groups = [_positions(entry, what) for what, entry in (("cuts", cuts), ("ties", ties))]
        return cls(storages, layers, names, *groups)

    def assign(self, layers: Iterable[str]) -> tuple[dict[str, tuple[Part, ...]], dict[str, tuple[str, ...]]]:
        """(parts by name of the quantized layers, copies by name of the layer that stores them)."""
        ordered = sorted(layers)
        ends = {cut[0]: cut[1:] for cut in self.cuts}
        letters, expected = iter(self.layers), len(ordered) + sum(len(cut) - 1 for cut in ends.values())
        if len(self.layers) != expected or digest(ordered) != self.names:
            raise Qua2SeDiMoError(
                f"the checkpoint describes {len(self.layers)} weight layers and parts, but the model built from its "
                f"config.json has {expected}, or other layer names",
                "Load it with the diffusers version named in config.json, or export it again.",
            )
        stored: dict[str, tuple[Part, ...]] = {}
        same: set[int] = set()
        for i, name in enumerate(ordered):
            bounds = ends.get(i)
            spans = list(zip((0, *bounds), bounds)) if bounds else [None]
            marks = [next(letters) for _ in spans]
            if marks == [_SAME]:
                same.add(i)
            elif marks != [_PLAIN]:
                if not set(marks) <= set(_LETTERS):
                    raise Qua2SeDiMoError(f"quantization_config: layer '{name}' is only partly quantized", DAMAGED)
                pairs = zip(spans, marks)
                stored[name] = tuple(Part(span, self.storages[_LETTERS.index(mark)]) for span, mark in pairs)
        copies = {tie[0]: tie[1:] for tie in self.ties}
        tied = [copy for names in copies.values() for copy in names]
        if sorted(tied) != sorted(same) or any(i >= len(ordered) or ordered[i] not in stored for i in copies):
            raise Qua2SeDiMoError("quantization_config: 'ties' and 'layers' are inconsistent", DAMAGED)
        return stored, {ordered[i]: tuple(ordered[j] for j in names) for i, names in copies.items()}


def _positions(entry: Any, what: str) -> tuple[tuple[int, ...], ...]:
    """Validate lists of at least two non-negative numbers, which increase after the first."""
    rows = entry if isinstance(entry, list) else [None]
    for row in rows:
        if not isinstance(row, list) or len(row) < 2 or any(type(n) is not int or n < 0 for n in row):
            raise Qua2SeDiMoError(f"quantization_config: '{what}' must be lists of positions", DAMAGED)
        if any(a >= b for a, b in pairwise(row[1:])):
            raise Qua2SeDiMoError(f"quantization_config: '{what}' must be lists of increasing positions", DAMAGED)
    return tuple(map(tuple, rows))


def digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def layer_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The Linear and Conv modules of ``denoiser`` by their first name, which the table describes."""
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, WEIGHT_MODULES)}


def install_empty_layers(
    denoiser: nn.Module, table: LayerTable, kept_in_fp32: Iterable[str] = ()
) -> dict[str, QuantizedLayer]:
    """Replace layers of a meta-device denoiser with quantized layers whose tensors are loaded later.

    Layers inside a module named in ``kept_in_fp32`` compute in fp32, whatever the dtype of the model.
    """
    modules = layer_modules(denoiser)
    fp32 = set(kept_in_fp32)
    stored, copies = table.assign(modules)
    layers: dict[str, QuantizedLayer] = {}
    for name, parts in stored.items():
        layers[name] = empty_quantized_module(modules[name], parts)
        if fp32.intersection(name.split(".")):
            layers[name].compute_in(torch.float32)
    replace_layers(denoiser, layers | {copy: layers[name] for name, names in copies.items() for copy in names})
    return layers
