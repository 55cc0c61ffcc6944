"""Run a forward pass without weight values: parameters become fake tensors, which have only a shape and a dtype.

Operations that do not depend on a parameter are computed with real values, so position tables made with numpy,
``timestep.item()`` and branches on inputs work. No tensor of a weight's size is ever allocated.
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
    """Whether any parameter is on the meta device."""
    return any(parameter.is_meta for parameter in denoiser.parameters())


def without_values(
    denoiser: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], tuple[Any, ...], dict[str, Any]]:
    """(fake parameters and meta buffers by name, args, kwargs) for :func:`call_without_values`.

    Meta tensors become fake tensors on the CPU; other arguments are unchanged; shared tensors stay shared.
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
    """The output of the denoiser with ``tensors`` in place of its parameters and buffers; hooks run as usual."""
    return functional_call(denoiser, tensors, args, kwargs, tie_weights=False)
