"""Decoding as an operation of PyTorch, ``qua2sedimo::decode``: what is compiled or exported calls the kernel too.

Without it a compiler would trace the tensor operations of the fallback, which take many times as long on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch

from qua2sedimo.quantizers.lookup import decode_rows
from qua2sedimo.quantizers.packing import unpack_words
from qua2sedimo.quantizers.threads import spread


def decode_into(codes: torch.Tensor, levels: torch.Tensor, bits: int, rows: torch.Tensor) -> None:
    """Write to ``rows`` [channels, n], real and on the CPU, the levels that packed codes name.

    ``levels`` [channels or 1, 2^bits] has the type of ``rows``, whose columns must be next to each other.
    """
    packed, table, target = codes.contiguous().numpy(), _raw(levels), _raw(rows)
    spread(lambda a, b: decode_rows(packed, bits, table, target, a, b), rows.shape[0], rows.numel())
    torch.autograd.graph.increment_version(rows)  # as any operation in place does


def look_up(codes: torch.Tensor, levels: torch.Tensor, bits: int, channels: int, n: int) -> torch.Tensor:
    """The levels [channels, n] that packed codes name, by tensor operations, on any device."""
    unpacked = unpack_words(codes.reshape(-1), bits, channels * n).view(channels, n)
    return torch.gather(levels.expand(channels, -1), 1, unpacked.long())


@cache
def device_kernel(device: str) -> Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor], None] | None:
    """As :func:`decode_into` for a type of device other than the CPU: Triton's, where it is installed; else None."""
    if device != "cuda" or find_spec("triton") is None:
        return None
    from qua2sedimo.quantizers.triton_kernel import decode_rows_into

    return decode_rows_into


def decode_on_device(codes: torch.Tensor, levels: torch.Tensor, bits: int, shape: Sequence[int]) -> torch.Tensor:
    """The operator on devices other than the CPU: by a kernel if there is one, by tensor operations otherwise."""
    channels, n = shape[0], math.prod(shape[1:])
    kernel = device_kernel(codes.device.type)
    if kernel is None:
        return look_up(codes, levels, bits, channels, n).view(shape)
    weight = levels.new_empty(channels, n)
    kernel(codes, levels, bits, weight)
    return weight.view(shape)


@torch.library.custom_op("qua2sedimo::decode", mutates_args=())
def decode(codes: torch.Tensor, levels: torch.Tensor, bits: int, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of ``shape`` (channels first) of the levels [channels or 1, 2^bits] that packed codes name."""
    return decode_on_device(codes, levels, bits, shape)


@decode.register_kernel("cpu")
def _(codes: torch.Tensor, levels: torch.Tensor, bits: int, shape: Sequence[int]) -> torch.Tensor:
    weight = levels.new_empty(shape)
    if weight.numel():
        decode_into(codes, levels, bits, weight.view(shape[0], -1))
    return weight


@decode.register_fake
def _(codes: torch.Tensor, levels: torch.Tensor, bits: int, shape: Sequence[int]) -> torch.Tensor:
    return levels.new_empty(shape)


def _raw(tensor: torch.Tensor):  # type: ignore[no-untyped-def]
    """The same memory as numpy sees it, 16-bit floats as bit patterns."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()
