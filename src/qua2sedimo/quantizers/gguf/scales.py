"""Integers of the groups of a block, scales and minima, as the bytes that a block stores."""

from __future__ import annotations

import torch

from qua2sedimo.quantizers.gguf.types import BlockType, Plane

_LOW, _HIGH = Plane(0, 4, 8), Plane(4, 2, 4)  # Q3_K: low four bits of 16 scales, then their high two


def packed_scales(kind: BlockType, scales: torch.Tensor, minima: torch.Tensor | None) -> torch.Tensor:
    """Scales and minima (integers [..., groups of a block]) as int16 [..., scale bytes / 2]."""
    if kind.name == "Q6_K":
        packed = scales.to(torch.int8).view(torch.uint8)
    elif kind.name == "Q3_K":
        raised = (scales + 32).to(torch.uint8)
        packed = torch.cat([plane_bytes(raised, _LOW), plane_bytes(raised, _HIGH)], dim=-1)
    elif kind.name == "Q2_K":
        assert minima is not None
        packed = scales.to(torch.uint8) | (minima.to(torch.uint8) << 4)
    else:
        assert minima is not None
        s, m = scales.to(torch.uint8), minima.to(torch.uint8)
        first = [(x[..., :4] & 63) | ((x[..., 4:] >> 4) << 6) for x in (s, m)]
        packed = torch.cat([*first, (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4)], dim=-1)
    return packed.contiguous().view(torch.int16)


def unpacked_scales(kind: BlockType, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Inverse of :func:`packed_scales`: fp32 [..., groups of a block] each, None for types without minima."""
    raw = packed.contiguous().view(torch.uint8)
    if kind.name == "Q6_K":
        return raw.view(torch.int8).float(), None
    if kind.name == "Q3_K":
        return (plane_codes(raw[..., :8], _LOW) | plane_codes(raw[..., 8:], _HIGH)).float() - 32, None
    if kind.name == "Q2_K":
        return (raw & 15).float(), (raw >> 4).float()
    first, second, rest = raw[..., :4], raw[..., 4:8], raw[..., 8:]
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 6) << 4)], dim=-1)
    return scales.float(), torch.cat([second & 63, (rest >> 4) | ((second >> 6) << 4)], dim=-1).float()


def plane_bytes(codes: torch.Tensor, plane: Plane) -> torch.Tensor:
    """The bytes uint8 [..., n·count/8] of a plane of codes uint8 [..., n]."""
    pieces = 8 // plane.count
    bits = (codes >> plane.first) & ((1 << plane.count) - 1)
    grouped = bits.reshape(*codes.shape[:-1], -1, pieces, plane.span)
    packed = grouped[..., 0, :].clone()
    for k in range(1, pieces):
        packed |= grouped[..., k, :] << (k * plane.count)
    return packed.flatten(-2)


def plane_codes(packed: torch.Tensor, plane: Plane) -> torch.Tensor:
    """Inverse of :func:`plane_bytes`: codes uint8 [..., n] that have only these bits."""
    pieces = [(packed >> (k * plane.count)) & ((1 << plane.count) - 1) for k in range(8 // plane.count)]
    chunks = [piece.reshape(*packed.shape[:-1], -1, plane.span) for piece in pieces]
    return torch.stack(chunks, dim=-2).flatten(-3) << plane.first
