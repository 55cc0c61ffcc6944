"""Denoisers whose weights wait in the CPU's memory until they are needed: placing them, and reading their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.system.memory import within_memory

_GROUP_HOOKS = ("group_offloading", "lazy_prefetch_group_offloading")


def placed(pipeline: Any, loading: Loading) -> Any:
    """The pipeline on its device, or with hooks that move its weights there when they are needed.

    Raises :class:`Qua2SeDiMoError` if it does not fit into the device's memory, or cannot be offloaded in this way.
    """
    device = loading.place()
    with within_memory(f"{type(pipeline).__name__} does not fit into memory on {device}"):
        if loading.offload == "none":
            return pipeline.to(device)
        add_hooks(pipeline, loading.offload, device)
    return pipeline


def add_hooks(pipeline: Any, offload: str, device: torch.device) -> None:
    """Add the hooks of a kind of offloading to all components; ``device`` is where they compute."""
    try:
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:  # without a stream, so that weights are never kept twice
            pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level")
    except (ValueError, NotImplementedError, ImportError) as error:
        raise Qua2SeDiMoError(
            f"{type(pipeline).__name__} cannot be offloaded by '{offload}': {error}", "Try another 'offload:'."
        ) from error


@contextmanager
def without_hooks(pipeline: Any, loading: Loading) -> Iterator[None]:
    """Within, the pipeline is on the CPU and has no hooks, and its weights can be read and saved as usual."""
    if loading.offload == "none":
        yield
        return
    remove_hooks(pipeline)
    try:
        yield
    finally:
        placed(pipeline, loading)


def remove_hooks(pipeline: Any) -> None:
    """Remove the hooks of :func:`add_hooks`; the weights are then in the CPU's memory."""
    pipeline.remove_all_hooks()
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            for module in component.modules():
                registry: Any = getattr(module, "_diffusers_hook", None)
                for name in _GROUP_HOOKS if registry is not None else ():
                    registry.remove_hook(name, recurse=False)
            component.to("cpu")


def is_hooked(denoiser: nn.Module) -> str | None:
    """The hook of accelerate or diffusers that moves the denoiser's weights, or a part's; None without any."""
    for name, module in denoiser.named_modules():
        if hasattr(module, "_hf_hook") or any(registered_hook(module, hook) for hook in _GROUP_HOOKS):
            return name or type(denoiser).__name__
    return None


def refuse_hooks(denoiser: nn.Module) -> None:
    """Raise :class:`Qua2SeDiMoError` if somebody else's hooks move the denoiser's weights.

    A device map's hooks, which leave the weights where they are, count as well: they may be removed.
    """
    place = is_hooked(denoiser)
    if place is not None:
        raise Qua2SeDiMoError(
            f"the weights of {type(denoiser).__name__} are offloaded: '{place}' has a hook that moves them",
            "Pass the pipeline as from_pretrained loads it, without enable_…_offload and device_map "
            "(pipeline.remove_all_hooks() undoes model and sequential offloading), or have it loaded by name: "
            "'model: NAME' with 'offload: model' in study.yaml.",
        )


def execution_device(denoiser: nn.Module) -> torch.device:
    """Where the denoiser computes; with hooks, its weights are elsewhere until then."""
    for module in denoiser.modules():
        hook = getattr(module, "_hf_hook", None)
        found = [getattr(each, "execution_device", None) for each in (hook, *getattr(hook, "hooks", ()))]
        found += [
            getattr(getattr(registered_hook(module, n), "group", None), "onload_device", None) for n in _GROUP_HOOKS
        ]
        for device in found:
            if device is not None:
                return torch.device(device)
    return next(denoiser.parameters()).device


def waiting_weight(module: nn.Module) -> torch.Tensor | None:
    """The weight of a module while accelerate's sequential offloading keeps it apart; None if it has it itself."""
    weight, hook = module.weight, getattr(module, "_hf_hook", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_meta or hook is None:
        return None
    for each in (hook, *getattr(hook, "hooks", ())):
        kept = getattr(each, "weights_map", None)
        if kept is not None:
            found: torch.Tensor = kept["weight"]
            return found
    return None


def registered_hook(module: nn.Module, name: str) -> Any:
    """The hook of this name that diffusers has attached to the module itself, None without one."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry.get_hook(name) if registry is not None else None
