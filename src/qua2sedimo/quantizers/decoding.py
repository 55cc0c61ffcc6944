"""From a quantized weight back to a tensor, on every device and inside compiled programs."""

from __future__ import annotations

import math

import torch

from qua2sedimo.quantizers.lookup import is_real, kernels_read
from qua2sedimo.quantizers.method import LevelMethod, Method
from qua2sedimo.quantizers.operator import decode, decode_into, device_kernel, look_up
from qua2sedimo.quantizers.registry import LEVEL_METHODS, METHODS
from qua2sedimo.quantizers.value import QuantizedWeight


def levels_of(value: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """What each code stands for: [channels, 2^bits] in ``dtype``, or [1, 2^bits] if all channels share it.

    Levels are first rounded to the weight's own type, so that it is the same weight in whatever type it is computed,
    and those beyond the largest number of that type become this number.
    """
    largest = torch.finfo(value.dtype).max
    levels = LEVEL_METHODS[value.method].levels(value.parameters, value.number)
    return levels.clamp(-largest, largest).to(value.dtype).to(dtype)


def dequantize_weight(value: QuantizedWeight, out: torch.Tensor | None = None) -> torch.Tensor:
    """The weight that ``value`` stands for, bit-identical wherever the file is read.

    Without ``out`` it has the value's shape and dtype. Otherwise it is cast to the float type of ``out`` and written
    there in place, also where ``out`` is a span of a larger weight. On a CPU codes are unpacked, looked up and written
    in one pass, without a tensor of codes between.
    """
    if out is None:
        out = torch.empty(value.shape, dtype=value.dtype, device=value.codes.device)
    if out.numel() == 0:
        return out
    method = METHODS[value.method]
    if not isinstance(method, LevelMethod):
        out.copy_(_computed(method, value).view(value.shape))
        return out
    levels = levels_of(value, out.dtype)
    rows = out.view(out.shape[0], -1)  # never copies: a span of input channels has regular rows too
    kernel = device_kernel(out.device.type)
    if kernels_read(out) and kernels_read(value.codes):
        decode_into(value.codes, levels, value.number, rows)
    elif kernel is not None and is_real(out) and is_real(value.codes):
        kernel(value.codes, levels, value.number, rows)
    else:
        rows.copy_(look_up(value.codes, levels, value.number, *rows.shape))
    return out


def dequantize_traceable(value: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
    """As :func:`dequantize_weight`, into a new tensor [value.shape] of ``dtype``, by operations that can be compiled.

    Where there is a kernel the compiled program calls it; on other devices the compiler fuses the operations.
    """
    method = METHODS[value.method]
    if not isinstance(method, LevelMethod):
        return _computed(method, value).to(dtype).view(value.shape)
    levels = levels_of(value, dtype)
    if levels.device.type == "cpu" or device_kernel(levels.device.type) is not None:
        return decode(value.codes, levels, value.number, value.shape)
    channels = value.shape[0]
    return look_up(value.codes, levels, value.number, channels, math.prod(value.shape[1:])).view(value.shape)


def _computed(method: Method, value: QuantizedWeight) -> torch.Tensor:
    """A weight that is computed, not looked up, [channels, n]: rounded to its own type."""
    largest = torch.finfo(value.dtype).max
    return method.dequantized(value).clamp(-largest, largest).to(value.dtype)
