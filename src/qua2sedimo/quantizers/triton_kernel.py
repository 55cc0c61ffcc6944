"""Decoding on a graphics processor: a Triton kernel that reads packed codes and writes their levels, in one pass.

Imported only where Triton is installed, as it is with PyTorch's builds for CUDA and ROCm. With TRITON_INTERPRET=1 in
the environment the same kernel runs on a CPU, slowly, which is how its results are tested.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # weights of a row that one program decodes


@triton.jit
def _decode_rows(packed, levels, out, n, size, books, stride, bits: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (c, b): weights b·block and following of row c, from the one or two bytes that each code lies in."""
    c = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * block + tl.arange(0, block)
    inside = i < n
    bit = (c * n + i) * bits
    byte = bit >> 3
    low = tl.load(packed + byte, mask=inside, other=0).to(tl.int32)
    high = tl.load(packed + byte + 1, mask=inside & (byte + 1 < size), other=0).to(tl.int32)
    code = ((low | (high << 8)) >> (bit & 7).to(tl.int32)) & ((1 << bits) - 1)
    level = tl.load(levels + (c % books) * (1 << bits) + code, mask=inside)
    tl.store(out + c * stride + i, level, mask=inside)


def decode_rows_into(codes: torch.Tensor, levels: torch.Tensor, bits: int, rows: torch.Tensor) -> None:
    """Write to ``rows`` [channels, n] the levels that packed codes name.

    ``levels`` [channels or 1, 2^bits] has the type of ``rows``, whose columns must be next to each other; all three are
    on one device.
    """
    if not rows.numel():
        return
    channels, n = rows.shape
    grid = (channels, triton.cdiv(n, _BLOCK))
    flat = codes.contiguous().view(-1)
    _decode_rows[grid](
        flat, _patterns(levels.contiguous()), _patterns(rows), n, flat.numel(), levels.shape[0], rows.stride(0),
        bits=bits, block=_BLOCK,
    )  # fmt: skip
    torch.autograd.graph.increment_version(rows)  # as any operation in place does


def _patterns(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory; 16-bit floats as bit patterns, which are copied whatever type they are."""
    tensor = tensor.detach()
    return tensor.view(torch.int16) if tensor.element_size() == 2 else tensor
