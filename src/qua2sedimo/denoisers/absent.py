"""Run a forward whose weights are absent: they become fake tensors, which know their shape and type only.

Everything else is computed really until it meets one. So positions made with numpy, ``.item()`` of a timestep and
branches on small inputs work as they are; nothing the size of a weight is ever held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_map


def has_absent_weights(denoiser: nn.Module) -> bool:
    """Whether some parameter is on the meta device."""
    return any(parameter.is_meta for parameter in denoiser.parameters())


def without_values(
    denoiser: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], tuple[Any, ...], dict[str, Any]]:
    """(fake parameters and absent buffers by name, args, kwargs); shared tensors stay shared.

    What is on the meta device becomes a fake tensor on the CPU; arguments that are elsewhere stay as they are.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                made[id(tensor)] = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu" if tensor.is_meta else tensor.device
                )
        return made[id(tensor)]

    tensors = {name: fake(p) for name, p in denoiser.named_parameters(remove_duplicate=False)}
    tensors |= {name: fake(b) for name, b in denoiser.named_buffers(remove_duplicate=False) if b.is_meta}

    def argument(value: Any) -> Any:
        return fake(value) if isinstance(value, torch.Tensor) and value.is_meta else value

    return tensors, tree_map(argument, tuple(args)), tree_map(argument, dict(kwargs))


def call_without_values(
    denoiser: nn.Module, tensors: dict[str, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The denoiser's output with ``tensors`` in the place of its own; hooks run as usual."""
    return functional_call(denoiser, tensors, args, kwargs, tie_weights=False)
