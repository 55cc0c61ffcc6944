"""Modules of a denoiser replaced by others of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.runtime.modules import QuantizedLayer


def replace_layers(denoiser: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Put ``layers`` in place of the modules of these names (and of their other names, if shared); returns
    ``denoiser``, changed. Raises :class:`Qua2SeDiMoError` on a name it does not have.
    """
    modules = dict(denoiser.named_modules(remove_duplicate=False))
    unknown = [name for name in layers if not name or name not in modules]
    if unknown:
        raise Qua2SeDiMoError(f"{type(denoiser).__name__} has no layer '{unknown[0]}'")
    replacements = {id(modules[name]): layer for name, layer in layers.items()}
    for name, module in modules.items():
        if id(module) in replacements:
            parent, _, child = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, replacements[id(module)])
    if hasattr(denoiser, "fuse_lora") and any(isinstance(layer, QuantizedLayer) for layer in layers.values()):
        object.__setattr__(denoiser, "fuse_lora", _refuse_fusing)
    return denoiser


def _refuse_fusing(*_: object, **__: object) -> NoReturn:
    """PEFT adds its update to ``weight.data``; added to a computed weight it would be lost without a word."""
    raise Qua2SeDiMoError(
        "an adapter cannot be fused into packed weights",
        "Use it unfused, or call qua2sedimo.dequantize(model) first.",
    )
