"""What a quantization method is: the interface of the registry's entries, and checks they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers.compensation import Target, compensated
from qua2sedimo.quantizers.error import unit_of
from qua2sedimo.quantizers.grids import Grid, LevelGrid
from qua2sedimo.quantizers.moment import Moment
from qua2sedimo.quantizers.operator import look_up
from qua2sedimo.quantizers.packing import pack, packed_length
from qua2sedimo.quantizers.value import QuantizedWeight


class Method(ABC):
    """Quantizes a weight [output channels, ...] in several ways at once, each named by a ``number``.

    For most methods the number is the bit width of a code; for ``lowrank`` it is the rank.
    """

    name: str
    #: The numbers that options of this method may have, and what the number is.
    numbers: Sequence[int] = range(1, 9)
    quantity = "bits"

    @abstractmethod
    def parameter_shapes(self, shape: tuple[int, ...], number: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the 16-bit parameters: they follow from the weight's shape and the number alone."""

    @abstractmethod
    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        """The 16-bit type of each parameter of any number, given the 16-bit float type of the checkpoint."""

    def width(self, number: int) -> int:
        """Bits of one code."""
        return number

    def fits(self, shape: tuple[int, ...], number: int) -> bool:
        """Whether a weight of this shape can be stored."""
        return True

    def overhead(self, number: int) -> float:
        """Bits a weight that are stored beside its code, as far as they do not depend on the weight's shape."""
        return 0.0

    def code_count(self, shape: tuple[int, ...], number: int) -> int:
        """How many codes are stored for a weight of this shape."""
        return math.prod(shape)

    def code_bytes(self, shape: tuple[int, ...], number: int) -> int:
        """Bytes of the packed codes of a weight of this shape."""
        return packed_length(self.code_count(shape, number), self.width(number))

    def packed_bytes(self, shape: tuple[int, ...], number: int) -> int:
        """Bytes of codes and parameters of a weight of this shape, without quantizing it."""
        parameters = self.parameter_shapes(shape, number)
        return self.code_bytes(shape, number) + 2 * sum(map(math.prod, parameters.values()))

    def quantize(
        self, weight: torch.Tensor, numbers: Sequence[int], moment: Moment | None = None
    ) -> list[QuantizedWeight]:
        """Quantize ``weight`` (fp16, bf16 or fp32, at least one dimension) for every number.

        With ``moment``, the second moment of the layer's inputs, rounding compensates errors under it
        (:mod:`qua2sedimo.quantizers.compensation`); without, or if the moment is not :attr:`~Moment.usable`, every
        weight goes to its nearest level. Parameters of fp32 weights are stored as fp16.

        Raises :class:`Qua2SeDiMoError` on NaN or infinity, which no code can represent, on fp32 weights beyond the
        range of fp16, and on a shape that does not fit.
        """
        self.check(weight, numbers)
        if weight.numel() == 0:
            return [self._empty(weight, n) for n in numbers]
        rows = weight.detach().reshape(weight.shape[0], -1)
        # Ranges and squared errors must have numbers in fp32; only bf16 weights can be so large or small.
        # Not less than 2^-16: beside the largest row, the smallest must keep numbers too.
        unit = max(unit_of(rows), 2.0**-16) if weight.dtype == torch.bfloat16 else 1.0
        usable = moment.normal if moment is not None and moment.usable else None
        fitted = self._fitted(rows if unit == 1 else rows * unit, numbers, usable)
        return [
            QuantizedWeight(
                self.name,
                n,
                tuple(weight.shape),
                weight.dtype,
                pack(codes, self.width(n)),
                self._scaled(found, 1 / unit),
            )
            for n, (codes, found) in zip(numbers, fitted)
        ]

    def check(self, weight: torch.Tensor, numbers: Sequence[int]) -> None:
        """Raise the errors of :meth:`quantize`."""
        unfit = [n for n in numbers if not self.fits(tuple(weight.shape), n)]
        if unfit:
            raise Qua2SeDiMoError(
                f"a weight {list(weight.shape)} cannot be stored as {self.name}-{unfit[0]}", "Choose other options."
            )
        check_finite(weight)
        check_half(weight)

    @abstractmethod
    def dequantized(self, value: QuantizedWeight) -> torch.Tensor:
        """What ``value`` stands for: fp32 [channels, n], not yet rounded to the weight's type; can be compiled."""

    @abstractmethod
    def _fitted(
        self, rows: torch.Tensor, numbers: Sequence[int], moment: Moment | None
    ) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """For each number: codes (uint8, in the order in which they are stored) and final, already rounded parameters
        of a weight ``rows`` [channels, n]."""

    def _scaled(self, parameters: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
        """Parameters of a weight that is ``factor``, a power of two, times as large."""
        if factor == 1:
            return parameters
        return {name: times(t, factor) if t.is_floating_point() else t for name, t in parameters.items()}

    def _empty(self, weight: torch.Tensor, number: int) -> QuantizedWeight:
        shape, dtypes = tuple(weight.shape), self.parameter_dtypes(stored_dtype(weight.dtype))
        parameters = {
            name: torch.zeros(size, dtype=dtypes[name], device=weight.device)
            for name, size in self.parameter_shapes(shape, number).items()
        }
        codes = torch.zeros(self.code_bytes(shape, number), dtype=torch.uint8, device=weight.device)
        return QuantizedWeight(self.name, number, shape, weight.dtype, codes, parameters)


class CodeMethod(Method):
    """A method whose codes each stand for one weight: its number is the bit width.

    A new one defines the parameters, how they are fitted, and the grid of values that follows from them. Both
    roundings, packing and sizes then work, provided that values are proportional to the float parameters.
    """

    @abstractmethod
    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """For each width: codes by nearest rounding (uint8, weight's shape as [channels, -1]) and final, already
        rounded parameters."""

    @abstractmethod
    def grid(self, parameters: dict[str, torch.Tensor], bits: int, dtype: torch.dtype) -> Grid:
        """The values that codes stand for, of a weight of this dtype.

        Shapes:
            parameters: as :meth:`parameter_shapes` says.
        """

    def rescaled(self, parameters: dict[str, torch.Tensor], factors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parameters of values ``factors`` times as large, rounded as stored.

        ``factors`` is fp32 [channels], or [1] if all channels share their values.
        """
        scaled = {}
        for name, tensor in parameters.items():
            if not tensor.is_floating_point():
                scaled[name] = tensor
                continue
            shared = len(factors) == 1
            by = factors if shared else factors.view(-1, *[1] * (tensor.dim() - 1))
            scaled[name] = times(tensor, by.to(tensor.device))
        return scaled

    def _fitted(
        self, rows: torch.Tensor, numbers: Sequence[int], moment: Moment | None
    ) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        found = self.fit(rows, numbers)
        if moment is None:
            return found
        target = Target(rows, moment)
        return [compensated(self, target, b, codes, given) for b, (codes, given) in zip(numbers, found)]


class LevelMethod(CodeMethod):
    """A method whose codes name one of the levels of their channel, or of the tensor.

    Decoding is looking them up. The root mean square error of a channel (of the tensor for ``kmeans_a``) under nearest
    rounding is at most r/(2^b − 1) + 2·u·r + 2^b·s, where r is the range of its weights with 0 included, and u and s
    are the unit roundoff and the least positive number of the stored type: 2⁻¹¹ and 2⁻²⁴ for fp16, 2⁻⁸ and 2⁻¹²⁶ (the
    least normal one) for bf16. This holds from 2 bits on, and for ``row`` only for weights that are distributed like a
    Gaussian.
    """

    @abstractmethod
    def levels(self, parameters: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
        """What each code stands for: float32 [channels, 2^bits], or [1, 2^bits] if all channels share it."""

    def grid(self, parameters: dict[str, torch.Tensor], bits: int, dtype: torch.dtype) -> Grid:
        """Levels as they are decoded: rounded to the weight's type."""
        largest = torch.finfo(dtype).max
        levels = self.levels(parameters, bits)
        return LevelGrid(levels.clamp(-largest, largest).to(dtype).float().contiguous())

    def dequantized(self, value: QuantizedWeight) -> torch.Tensor:
        """The levels that its codes name."""
        channels, n = value.shape[0], math.prod(value.shape[1:])
        return look_up(value.codes, self.levels(value.parameters, value.number), value.number, channels, n)


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit float type that parameters are kept in: bf16 for bf16 weights, fp16 otherwise."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float16


def times(parameter: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    """A float parameter times ``factor``, in its own type, whose largest number it does not pass."""
    largest = torch.finfo(parameter.dtype).max
    return (parameter.float() * factor).clamp(-largest, largest).to(parameter.dtype)


def check_half(weight: torch.Tensor) -> None:
    """Raise :class:`Qua2SeDiMoError` if a weight [...] of a type wider than 16 bits is beyond the range of fp16."""
    if weight.dtype in (torch.bfloat16, torch.float16):
        return
    lost = int((torch.isinf(weight.to(torch.float16)) & torch.isfinite(weight)).sum())
    if lost:
        raise Qua2SeDiMoError(
            f"{lost} of {weight.numel()} weights are beyond ±65504, the range of float16",
            "Load the pipeline in torch.bfloat16.",
        )


def check_finite(weight: torch.Tensor) -> None:
    bad = int((~torch.isfinite(weight)).sum()) if weight.numel() else 0
    if bad:
        raise Qua2SeDiMoError(
            f"weight has {bad} NaN or infinite values of {weight.numel()}",
            "Repair the checkpoint, or download it again.",
        )
