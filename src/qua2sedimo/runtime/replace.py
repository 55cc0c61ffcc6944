"""Replace modules of a denoiser by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import NoReturn

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.runtime.modules import QuantizedLayer


def replace_layers(denoiser: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Replace the named modules, under all their names if shared; modifies and returns ``denoiser``.

    Raises :class:`Qua2SeDiMoError` if the denoiser has no module of a name.
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
        object.__setattr__(denoiser, "fuse_lora", MethodType(refuse_fusing, denoiser))
    return denoiser


def refuse_fusing(*_: object, **__: object) -> NoReturn:
    """In place of ``fuse_lora``: refuse at once, before PEFT merges an adapter into layers that are not packed."""
    raise Qua2SeDiMoError(
        "an adapter cannot be fused into packed weights",
        "Use it unfused, or call qua2sedimo.dequantize(model) first.",
    )
