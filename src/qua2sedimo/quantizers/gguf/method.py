"""The block types of GGUF as quantization methods: what they store is what a file of the format has, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers.compensation import Target, compensated
from qua2sedimo.quantizers.gguf.fitting import Parameters, fitted
from qua2sedimo.quantizers.gguf.refining import refined
from qua2sedimo.quantizers.gguf.scales import unpacked_scales
from qua2sedimo.quantizers.gguf.types import TYPES, BlockType, type_of
from qua2sedimo.quantizers.grids import ScaledGrid
from qua2sedimo.quantizers.method import CodeMethod
from qua2sedimo.quantizers.moment import Moment
from qua2sedimo.quantizers.packing import unpack
from qua2sedimo.quantizers.value import QuantizedWeight

_OFFSETS = ("m", "dmin")


class BlockMethod(CodeMethod):
    """ŵ = scale · table[code] + offset, with a scale for every 16 or 32 weights of a row: a family of GGUF's types.

    The number is the bits of a code and names the type, such as Q4_K for ``gguf_k-4``. Rows must be whole blocks of 32
    or, for ``gguf_k``, of 256 weights. Scales are in fp16 whatever the weight's type, as the format has them. Nearest
    rounding chooses them by least squares. Compensated rounding weighs errors by what they cost after compensation,
    rounds what a block's scales share first, compensates, and then moves scales, offsets and codes in turn to where the
    row's output error is least.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers = tuple(TYPES[name])

    def fits(self, shape: tuple[int, ...], number: int) -> bool:
        """Whether the rows of a weight are whole blocks."""
        return math.prod(shape[1:]) % type_of(self.name, number).block == 0

    def overhead(self, number: int) -> float:
        """Bits a weight of scales and offsets."""
        kind = type_of(self.name, number)
        return 8 * kind.nbytes / kind.block - kind.bits

    def parameter_shapes(self, shape: tuple[int, ...], number: int) -> dict[str, tuple[int, ...]]:
        """``d``, and by type ``m`` or ``dmin``, of each block; ``scales``, a block's packed integers, as int16."""
        kind = type_of(self.name, number)
        if not self.fits(shape, number):
            raise Qua2SeDiMoError(
                f"rows of {math.prod(shape[1:])} weights are no whole blocks of {kind.block}, as {kind.name} has them"
            )
        blocks = (shape[0], math.prod(shape[1:]) // kind.block)
        return {
            name: (*blocks, kind.scale_bytes // 2) if name == "scales" else blocks
            for name in kind.fields
            if isinstance(name, str)
        }

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        """fp16, and bit patterns for packed integers."""
        return {
            name: torch.int16 if name == "scales" else torch.float16
            for kind in TYPES[self.name].values()
            for name in kind.fields
            if isinstance(name, str)
        }

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, Parameters]]:
        """By least squares of the weight's errors."""
        return [self._nearest(weight, b, None) for b in bits]

    def grid(self, parameters: Parameters, bits: int, dtype: torch.dtype) -> ScaledGrid:
        """The values as other programs decode them, in fp32."""
        kind = type_of(self.name, bits)
        scale, offset = _scales(kind, parameters)
        return ScaledGrid(scale, offset, kind.values(scale.device), kind.group)

    def dequantized(self, value: QuantizedWeight) -> torch.Tensor:
        """Bit for bit what a decoder of the format gives in fp32."""
        codes = unpack(value.codes, value.number, math.prod(value.shape)).view(value.shape[0], -1)
        return self.grid(value.parameters, value.number, value.dtype).values(codes)

    def _nearest(self, rows: torch.Tensor, bits: int, columns: torch.Tensor | None) -> tuple[torch.Tensor, Parameters]:
        parameters = fitted(type_of(self.name, bits), rows, columns)
        return self.grid(parameters, bits, rows.dtype).nearest(rows.float()), parameters

    def _fitted(
        self, rows: torch.Tensor, numbers: Sequence[int], moment: Moment | None
    ) -> list[tuple[torch.Tensor, Parameters]]:
        if moment is None:
            return self.fit(rows, numbers)
        costs = torch.cat([_costs(factor.order, factor.diagonal) for factor in moment.factors])
        target = Target(rows, moment)
        return [self._compensated(rows, bits, costs.to(rows.device), target) for bits in numbers]

    def _compensated(
        self, rows: torch.Tensor, bits: int, costs: torch.Tensor, target: Target
    ) -> tuple[torch.Tensor, Parameters]:
        kind, plain = type_of(self.name, bits), self._nearest(rows, bits, None)
        found = compensated(self, target, bits, *self._nearest(rows, bits, costs))
        found = refined(kind, lambda p: self.grid(p, bits, rows.dtype), target, *found)
        before, after = (target.errors(self.grid(p, bits, rows.dtype).values(codes)) for codes, p in (plain, found))
        better = (after < before).to(rows.device)
        return torch.where(better[:, None], found[0], plain[0]), {
            name: torch.where(better.view(-1, *[1] * (plain[1][name].dim() - 1)), tensor, plain[1][name])
            for name, tensor in found[1].items()
        }


def _costs(order: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """What a squared error of each column costs after those to come have made up for it, in the columns' own order."""
    cost = torch.empty_like(diagonal)
    cost[order] = 1 / diagonal.square()
    return cost / cost.mean()


def _scales(kind: BlockType, parameters: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of each group: fp32 [channels, n / group]."""
    d = parameters["d"].float()
    if kind.scales is None:
        offset = parameters["m"].float() if kind.minimum else torch.full_like(d, -0.0)  # adding it changes no bit
        return d, offset
    scales, minima = unpacked_scales(kind, parameters["scales"])
    scale = (d[..., None] * scales).flatten(1)
    if minima is None:
        return scale, torch.full_like(scale, -0.0)
    return scale, -(parameters["dmin"].float()[..., None] * minima).flatten(1)


#: One a family of types.
GGUF_METHODS = tuple(BlockMethod(name) for name in TYPES)
