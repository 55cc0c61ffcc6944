"""Tensors compared and kept bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers.layers import shared_modules
from qua2sedimo.denoisers.stored import kept_in_fp32


def compact(weight: torch.Tensor) -> torch.Tensor:
    """A copy, in a 16-bit float dtype if one holds every number exactly."""
    if weight.element_size() > 2:
        for dtype in (torch.float16, torch.bfloat16):
            small = weight.to(dtype)
            if same_bits(small.to(weight.dtype), weight):
                return small
    return weight.clone()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bitwise equal: signs of zeros count, and NaN equals itself."""
    return a.shape == b.shape and torch.equal(bits(a), bits(b))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bit patterns, as integers."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def kept_exact(denoiser: nn.Module) -> Callable[[str], bool]:
    """Whether a tensor of the denoiser, by name, must not be rounded to 16 bits.

    It must not if the class loads it in fp32 whatever the dtype (``_keep_in_fp32_modules``), or excludes it from casts
    to fewer bits (``_skip_layerwise_casting_patterns``); of the latter not weights of Linear and Conv layers, which are
    quantized, or kept in 16 bits by the user.
    """
    cls: Any = type(denoiser)
    kept, patterns = kept_in_fp32(cls), tuple(getattr(cls, "_skip_layerwise_casting_patterns", None) or ())
    weights = {f"{name}.weight" for names in shared_modules(denoiser) for name in names}

    def exact(name: str) -> bool:
        if any(part in kept for part in name.split(".")):
            return True
        module, _, _ = name.rpartition(".")
        return name not in weights and any(re.search(pattern, module) for pattern in patterns)

    return exact
