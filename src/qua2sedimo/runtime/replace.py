"""Replace modules of a denoiser by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError


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
    return denoiser
