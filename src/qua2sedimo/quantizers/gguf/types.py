"""The block types: how many weights share a block, what a block stores, and what a code stands for.

A weight is scale · table[code] + offset. In the simple types, blocks of 32 weights store the scale, and in some the
offset, in fp16. In the K types a block of 256 weights has groups of 16 or 32, whose scale is an integer of 4 to 8 bits
times ``d`` of the block; some have an offset too, minus an unsigned integer times ``dmin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from qua2sedimo.errors import Qua2SeDiMoError

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Plane:
    """Bits of the codes of a block, ``count`` of each from its bit ``first`` on, as bytes.

    Codes are taken in chunks of 8/count · span. Byte k of a chunk has those of codes k, k + span, k + 2·span …, the
    first in its lowest bits.
    """

    first: int
    count: int
    span: int


@dataclass(frozen=True)
class BlockType:
    """One type. ``fields``: a block's bytes in order, planes of codes and names of parameters.

    ``block``, ``group``: weights that share a block, and a scale. ``table``: what codes stand for in units of the
    scale. ``scales``: the least and the greatest integer that a group's scale may be, None if it is stored in fp16.
    ``minimum``: whether there is an offset, ``m`` in fp16 or, with integer scales, ``dmin`` times an integer of the
    scales' range.
    """

    name: str
    bits: int
    block: int
    group: int
    table: tuple[int, ...]
    fields: tuple[Plane | str, ...]
    scale_bytes: int = 0
    scales: tuple[int, int] | None = None
    minimum: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return self.block * self.bits // 8 + self.scale_bytes + (4 if self.minimum else 2)

    def values(self, device: torch.device) -> torch.Tensor:
        """The table as fp32 [2^bits]."""
        return torch.tensor(self.table, dtype=torch.float32, device=device)


def _symmetric(bits: int) -> tuple[int, ...]:
    return tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


def _simple(name: str, bits: int, fields: tuple[Plane | str, ...], table: tuple[int, ...] | None = None) -> BlockType:
    minimum = "m" in fields
    return BlockType(
        name, bits, 32, 32, table or (tuple(range(2**bits)) if minimum else _symmetric(bits)), fields, minimum=minimum
    )


_FOUR, _FIFTH = Plane(0, 4, 16), Plane(4, 1, 1)
_K4, _K5, _K2, _K3 = Plane(0, 4, 32), Plane(4, 1, 32), Plane(0, 2, 32), Plane(2, 1, 32)

#: Method → bits of a code → type.
TYPES: Mapping[str, Mapping[int, BlockType]] = MappingProxyType(
    {
        "gguf_0": {
            4: _simple("Q4_0", 4, ("d", _FOUR)),
            5: _simple("Q5_0", 5, ("d", _FIFTH, _FOUR)),
            8: _simple("Q8_0", 8, ("d", Plane(0, 8, 1))),
        },
        "gguf_1": {
            4: _simple("Q4_1", 4, ("d", "m", _FOUR)),
            5: _simple("Q5_1", 5, ("d", "m", _FIFTH, _FOUR)),
        },
        "gguf_nl": {4: _simple("IQ4_NL", 4, ("d", _FOUR), _IQ4_NL)},
        "gguf_k": {
            2: BlockType("Q2_K", 2, 256, 16, tuple(range(4)), ("scales", _K2, "d", "dmin"), 16, (0, 15), minimum=True),
            3: BlockType("Q3_K", 3, 256, 16, _symmetric(3), (_K3, _K2, "scales", "d"), 12, (-32, 31)),
            4: BlockType("Q4_K", 4, 256, 32, tuple(range(16)), ("d", "dmin", "scales", _K4), 12, (0, 63), minimum=True),
            5: BlockType(
                "Q5_K", 5, 256, 32, tuple(range(32)), ("d", "dmin", "scales", _K5, _K4), 12, (0, 63), minimum=True
            ),
            6: BlockType(
                "Q6_K", 6, 256, 16, _symmetric(6), (Plane(0, 4, 64), Plane(4, 2, 32), "scales", "d"), 16, (-128, 127)
            ),
        },
    }
)


def type_of(method: str, number: int) -> BlockType:
    """The block type of an option; raises :class:`Qua2SeDiMoError` if it is none."""
    try:
        return TYPES[method][number]
    except KeyError:
        raise Qua2SeDiMoError(f"option '{method}-{number}' is no GGUF type") from None
