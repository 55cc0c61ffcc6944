"""How SDNQ packs codes: every width has its own order of bits, found by experiment (docs/formats.md)."""

from __future__ import annotations

import math

import torch

from qua2sedimo.errors import Qua2SeDiMoError

#: Width → (codes of a group, bytes of a group, pieces). A piece (byte, shift, code, first, count) puts ``count`` bits
#: of a code, from its bit ``first`` on, into a byte of the group, from that byte's bit ``shift`` on.
_Piece = tuple[int, int, int, int, int]
_LAYOUTS: dict[int, tuple[int, int, list[_Piece]]] = {
    1: (8, 1, [(0, k, k, 0, 1) for k in range(8)]),
    2: (4, 1, [(0, 2 * k, k, 0, 2) for k in range(4)]),
    3: (
        8, 3,
        [(j, 3 * k, j + 3 * k, 0, 3) for j in range(3) for k in range(2)]
        + [(0, 6, 6, 0, 2), (1, 6, 7, 0, 2), (2, 6, 6, 2, 1), (2, 7, 7, 2, 1)],
    ),
    4: (2, 1, [(0, 0, 0, 0, 4), (0, 4, 1, 0, 4)]),
    5: (
        8, 5,
        [(j, 0, j, 0, 5) for j in range(5)]
        + [(j, 5, 5 + j, 0, 3) for j in range(3)]
        + [(3, 5, 5, 3, 2), (4, 5, 6, 3, 2), (3, 7, 7, 4, 1), (4, 7, 7, 3, 1)],
    ),
    6: (4, 3, [(j, 0, j, 0, 6) for j in range(3)] + [(j, 6, 3, 4 - 2 * j, 2) for j in range(3)]),
    7: (8, 7, [(j, 0, j, 0, 7) for j in range(7)] + [(j, 7, 7, 6 - j, 1) for j in range(7)]),
    8: (1, 1, [(0, 0, 0, 0, 8)]),
}  # fmt: skip


def stored_width(bits: int, count: int) -> int:
    """The narrowest width of at least ``bits`` in which ``count`` codes fill whole groups."""
    return next(width for width in range(bits, 9) if count % _LAYOUTS[width][0] == 0)


def packed_shape(shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """The shape of the packed codes of a weight of this shape."""
    if width == 8:
        return shape
    codes, nbytes, _ = _LAYOUTS[width]
    groups = _groups(math.prod(shape), width, codes)
    return (groups,) if nbytes == 1 else (groups, nbytes)


def pack_codes(codes: torch.Tensor, width: int) -> torch.Tensor:
    """uint8 codes of a weight's shape, packed: uint8 of :func:`packed_shape`."""
    per_group, nbytes, pieces = _LAYOUTS[width]
    grouped = codes.reshape(-1, per_group)
    packed = torch.zeros(len(grouped), nbytes, dtype=torch.uint8)
    for byte, shift, code, first, count in pieces:
        packed[:, byte] |= ((grouped[:, code] >> first) & ((1 << count) - 1)) << shift
    return packed.reshape(packed_shape(tuple(codes.shape), width))


def _groups(count: int, width: int, codes: int) -> int:
    if count % codes:
        raise Qua2SeDiMoError(f"{count} codes of {width} bits do not fill groups of {codes}")
    return count // codes
