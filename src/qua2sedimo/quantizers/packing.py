"""Codes of 1 to 8 bits packed without gaps.

Eight b-bit codes fill b bytes; code 0 starts at the lowest bit of byte 0. For b = 3::

    byte     0                 1                 2
    bit   7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0
    code  2 2 1 1 1 0 0 0   5 4 4 4 3 3 3 2   7 7 7 6 6 6 5 5

A length that is not a multiple of 8 is padded with zero codes and cut to ⌈N·b/8⌉ bytes. The CPU has compiled
kernels, other devices vectorised tensor operations; they give the same bytes.
"""

from __future__ import annotations

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers.lookup import decode_rows, kernels_read, pack_codes


def packed_length(count: int, bits: int) -> int:
    """⌈count·bits/8⌉, the bytes that ``count`` codes take."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integer codes (any shape, values below 2^bits) into uint8 [⌈N·bits/8⌉] on the same device."""
    _check_bits(bits)
    flat = codes.reshape(-1)
    if kernels_read(flat) and flat.dtype == torch.uint8:
        packed = torch.empty(packed_length(flat.numel(), bits), dtype=torch.uint8)
        _check_range(0, int(pack_codes(flat.numpy(), bits, packed.numpy())), bits)
        return packed
    if flat.numel():
        _check_range(int(flat.min()), int(flat.max()), bits)
    return pack_words(flat.to(torch.uint8), bits)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Inverse of :func:`pack`: uint8 codes [count]. Raises if the bytes are not those of ``count`` codes."""
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.numel() != packed_length(count, bits):
        raise Qua2SeDiMoError(
            f"packed codes: expected uint8 [{packed_length(count, bits)}] for {count} codes of {bits} bits, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    if not kernels_read(packed):
        return unpack_words(packed.reshape(-1), bits, count)
    codes = np.empty((1, count), dtype=np.uint8)
    themselves = np.arange(2**bits, dtype=np.uint8)[None]
    decode_rows(packed.reshape(-1).numpy(), bits, themselves, codes, 0, 1)
    return torch.from_numpy(codes[0])


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """:func:`pack` for uint8 codes [N] on any device: eight codes in an int64 word, then its bytes."""
    groups = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).view(-1, 8)
    words = torch.zeros(groups.shape[0], dtype=torch.int64, device=codes.device)
    for i in range(8):  # at 8 bits the last shift reaches the sign, which is a bit like any other here
        words |= groups[:, i].to(torch.int64) << (i * bits)
    packed = torch.stack([((words >> (8 * i)) & 255).to(torch.uint8) for i in range(bits)], dim=1)
    return packed.reshape(-1)[: packed_length(codes.numel(), bits)].contiguous()


def unpack_words(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """:func:`unpack` for uint8 bytes [⌈count·bits/8⌉] on any device."""
    rows = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    words = torch.zeros(rows.shape[0], dtype=torch.int64, device=packed.device)
    for i in range(bits):
        words |= rows[:, i].to(torch.int64) << (8 * i)
    codes = torch.stack([((words >> (i * bits)) & (2**bits - 1)).to(torch.uint8) for i in range(8)], dim=1)
    return codes.reshape(-1)[:count].contiguous()


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise Qua2SeDiMoError(f"bits must be 1 to 8, got {bits}")


def _check_range(least: int, largest: int, bits: int) -> None:
    if least < 0 or largest >= 2**bits:
        wrong = least if least < 0 else largest
        raise Qua2SeDiMoError(f"codes must lie in 0 to {2**bits - 1} for {bits} bits, got {wrong}")
