"""Codes of 2 to 8 bits packed without gaps.

Eight b-bit codes fill b bytes; code 0 starts at the lowest bit of byte 0. For b = 3::

    byte     0                 1                 2
    bit   7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0
    code  2 2 1 1 1 0 0 0   5 4 4 4 3 3 3 2   7 7 7 6 6 6 5 5

A length that is not a multiple of 8 is padded with zero codes and cut to ⌈N·b/8⌉ bytes.
"""

from __future__ import annotations

import torch

from qua2sedimo.errors import Qua2SeDiMoError


def packed_length(count: int, bits: int) -> int:
    """⌈count·bits/8⌉, the bytes that ``count`` codes take."""
    return -(-count * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integer codes (any shape, values below 2^bits) into uint8 [⌈N·bits/8⌉] on the same device."""
    _check_bits(bits)
    flat = codes.reshape(-1)
    if flat.numel() and (int(flat.max()) >> bits or int(flat.min()) < 0):
        raise Qua2SeDiMoError(f"codes must lie in 0 to {2**bits - 1} for {bits} bits, got {int(flat.max())}")
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    groups = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    words = torch.zeros(groups.shape[0], dtype=torch.int64, device=flat.device)  # 8 codes: at most 56 bits
    for i in range(8):
        words |= groups[:, i].to(torch.int64) << (i * bits)
    packed = torch.stack([((words >> (8 * i)) & 255).to(torch.uint8) for i in range(bits)], dim=1)
    return packed.reshape(-1)[: packed_length(flat.numel(), bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Inverse of :func:`pack`: uint8 codes [count]. Raises if the bytes are not those of ``count`` codes."""
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.numel() != packed_length(count, bits):
        raise Qua2SeDiMoError(
            f"packed codes: expected uint8 [{packed_length(count, bits)}] for {count} codes of {bits} bits, "
            f"got {packed.dtype} {list(packed.shape)}"
        )
    if bits == 8:
        return packed.reshape(-1).clone()
    rows = torch.nn.functional.pad(packed.reshape(-1), (0, -packed.numel() % bits)).view(-1, bits)
    words = torch.zeros(rows.shape[0], dtype=torch.int64, device=packed.device)
    for i in range(bits):
        words |= rows[:, i].to(torch.int64) << (8 * i)
    mask = 2**bits - 1
    codes = torch.stack([((words >> (i * bits)) & mask).to(torch.uint8) for i in range(8)], dim=1)
    return codes.reshape(-1)[:count]


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise Qua2SeDiMoError(f"bits must be 2 to 8, got {bits}")
