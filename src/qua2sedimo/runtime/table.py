"""Which layer of a denoiser is stored how, in one character a layer.

The layers are the Linear and Conv modules that the model's class makes from its ``config.json``, sorted by
name. So the table needs no names and no shapes: ``quantization_config`` is about as many characters long as
the denoiser has layers, and the shapes of all packed tensors follow from the model's config and this table.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option
from qua2sedimo.runtime.modules import QuantizedLayer, empty_quantized_module, plain_class, replace_layers

_PLAIN = "."
_LETTERS = string.ascii_letters + string.digits + "!#$%&()*+,-/:;<=>?@[]^_{|}~"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_MOST_LAYERS = 100_000
DAMAGED = "The checkpoint's config.json is damaged: download it or export it again."


@dataclass(frozen=True)
class Storage:
    """How one layer is stored: its option and the dtype of its dequantized weight; ``"uaq-4/float16"``."""

    option: Option
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.option}/{str(self.dtype).removeprefix('torch.')}"

    @classmethod
    def parse(cls, text: object) -> Storage:
        option, _, dtype = text.partition("/") if isinstance(text, str) else ("", "", "")
        if dtype not in _DTYPES:
            raise Qua2SeDiMoError(f"quantization_config: {text!r} is not of the form METHOD-BITS/DTYPE", DAMAGED)
        return cls(Option.parse(option), _DTYPES[dtype])


@dataclass(frozen=True)
class LayerTable:
    """``layers[i]`` is the letter of the i-th layer's entry in ``storages``, or ``.`` for one kept as it is.

    ``names`` is a digest of all layers' names: a diffusers version that names them otherwise is noticed.
    """

    storages: tuple[Storage, ...]
    layers: str
    names: str

    @classmethod
    def of(cls, layers: Iterable[str], stored: Mapping[str, Storage]) -> LayerTable:
        """The table of the ``stored`` ones of ``layers``."""
        ordered = sorted(layers)
        storages = tuple(sorted(set(stored.values()), key=str))
        letters = {storage: _LETTERS[i] for i, storage in enumerate(storages)}
        row = "".join(letters[stored[name]] if name in stored else _PLAIN for name in ordered)
        return cls(storages, row, digest(ordered))

    @classmethod
    def parse(cls, options: Any, layers: Any, names: Any) -> LayerTable:
        """From the entries of ``quantization_config``; :class:`Qua2SeDiMoError` on anything unexpected."""
        if not isinstance(options, list) or len(options) > len(_LETTERS):
            raise Qua2SeDiMoError("quantization_config: 'options' must be a list of options", DAMAGED)
        storages = tuple(Storage.parse(text) for text in options)
        known = {_PLAIN, *_LETTERS[: len(storages)]}
        if not isinstance(layers, str) or len(layers) > _MOST_LAYERS or not known.issuperset(layers):
            raise Qua2SeDiMoError("quantization_config: 'layers' must name an option per layer", DAMAGED)
        if not isinstance(names, str):
            raise Qua2SeDiMoError("quantization_config: 'names' must be a digest", DAMAGED)
        return cls(storages, layers, names)

    def assign(self, layers: Iterable[str]) -> dict[str, Storage]:
        """Layer name → storage, of the quantized ones of ``layers``."""
        ordered = sorted(layers)
        if len(ordered) != len(self.layers) or digest(ordered) != self.names:
            raise Qua2SeDiMoError(
                f"the checkpoint describes {len(self.layers)} weight layers, the model its config.json makes "
                f"has {len(ordered)}, or names them otherwise",
                "Load it with the diffusers version in its qua2sedimo.json, or export it again.",
            )
        pairs = zip(ordered, self.layers)
        return {name: self.storages[_LETTERS.index(letter)] for name, letter in pairs if letter != _PLAIN}


def digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def layer_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The Linear and Conv modules of ``denoiser`` by their first name: those a table has a letter for."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, kinds)}


def install_empty_layers(
    denoiser: nn.Module, table: LayerTable, kept_in_fp32: Iterable[str] = ()
) -> dict[str, QuantizedLayer]:
    """Replace layers of a denoiser made on the meta device by quantized ones that wait for their tensors.

    Layers below a module named in ``kept_in_fp32`` compute in fp32 whatever the model's dtype is.
    """
    modules = layer_modules(denoiser)
    fp32 = set(kept_in_fp32)
    layers = {}
    for name, storage in table.assign(modules).items():
        plain_class(modules[name])
        layer = empty_quantized_module(modules[name], storage.option.method, storage.option.bits, storage.dtype)
        if fp32.intersection(name.split(".")):
            layer.compute_in(torch.float32)
        layers[name] = layer
    replace_layers(denoiser, layers)
    return layers
