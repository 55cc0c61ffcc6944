"""Raw blocks: the bytes of a quantized weight as GGUF files have them, from codes and parameters and back."""

from __future__ import annotations

import math

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers.gguf.scales import plane_bytes, plane_codes
from qua2sedimo.quantizers.gguf.types import BlockType, Plane, type_of
from qua2sedimo.quantizers.packing import pack, unpack
from qua2sedimo.quantizers.value import QuantizedWeight


def blocks_of(value: QuantizedWeight) -> torch.Tensor:
    """The blocks of a weight [channels, n], one after the other: uint8 [channels, n / block · bytes of a block]."""
    kind = type_of(value.method, value.number)
    count = math.prod(value.shape)
    codes = unpack(value.codes, value.number, count).view(-1, kind.block)
    if kind.name == "Q8_0":  # signed in the file
        codes = codes ^ 128
    columns = []
    for field in kind.fields:
        if isinstance(field, Plane):
            columns.append(plane_bytes(codes, field))
        else:
            columns.append(value.parameters[field].contiguous().view(torch.uint8).reshape(len(codes), -1))
    return torch.cat(columns, dim=1).view(value.shape[0], -1)


def from_blocks(method: str, number: int, blocks: torch.Tensor, dtype: torch.dtype) -> QuantizedWeight:
    """Inverse of :func:`blocks_of`: the weight of ``dtype`` that rows of blocks, uint8 [channels, bytes], stand for.

    Raises :class:`Qua2SeDiMoError` if the bytes are no whole blocks.
    """
    kind = type_of(method, number)
    if blocks.shape[1] % kind.nbytes:
        raise Qua2SeDiMoError(f"rows of {blocks.shape[1]} bytes are no whole blocks of {kind.name}")
    channels, per_row = blocks.shape[0], blocks.shape[1] // kind.nbytes
    raw = blocks.reshape(-1, kind.nbytes)
    codes = torch.zeros(len(raw), kind.block, dtype=torch.uint8)
    parameters: dict[str, torch.Tensor] = {}
    at = 0
    for field in kind.fields:
        size = _size(kind, field)
        part = raw[:, at : at + size].contiguous()
        at += size
        if isinstance(field, Plane):
            codes |= plane_codes(part, field)
        else:
            stored = part.view(torch.int16 if field == "scales" else torch.float16)
            parameters[field] = stored.reshape(channels, per_row, *([-1] if field == "scales" else []))
    if kind.name == "Q8_0":
        codes ^= 128
    return QuantizedWeight(method, number, (channels, per_row * kind.block), dtype, pack(codes, number), parameters)


def _size(kind: BlockType, field: Plane | str) -> int:
    """Bytes of a field of a block."""
    if isinstance(field, Plane):
        return kind.block * field.count // 8
    return kind.scale_bytes if field == "scales" else 2
