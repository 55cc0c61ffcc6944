"""What a quantization method is: the interface of the registry's entries, and checks they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers.packing import pack
from qua2sedimo.quantizers.value import QuantizedWeight

_LARGE = 2.0**120


class Method(ABC):
    """Quantizes a weight [output channels, ...] at several bit widths at once, and says what its codes stand for."""

    name: str

    @abstractmethod
    def parameter_shapes(self, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the 16-bit parameters: they follow from the weight's shape and bits alone."""

    @abstractmethod
    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        """The 16-bit type of each parameter, given the 16-bit float type of the checkpoint."""

    @abstractmethod
    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """For each width: codes (uint8, weight's shape as [channels, -1]) and final, already rounded parameters."""

    @abstractmethod
    def levels(self, parameters: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
        """What each code stands for: float32 [channels, 2^bits], or [1, 2^bits] if all channels share it."""

    def quantize(self, weight: torch.Tensor, bits: Sequence[int]) -> list[QuantizedWeight]:
        """Quantize ``weight`` (fp16, bf16 or fp32, at least one dimension) at every width of ``bits``.

        The root mean square error of a channel (of the tensor for ``kmeans_a``) is at most
        r/(2^b − 1) + 2·u·r + 2^b·s, where r is the range of its weights with 0 included, and u and s are the unit
        roundoff and the least positive number of the stored type: 2⁻¹¹ and 2⁻²⁴ for fp16, 2⁻⁸ and 2⁻¹²⁶ (the least
        normal one) for bf16. Parameters of fp32 weights are stored as fp16.

        Raises :class:`Qua2SeDiMoError` on NaN or infinity, which no code can represent, and on fp32 weights beyond the
        range of fp16.
        """
        check_finite(weight)
        check_half(weight)
        if weight.numel() == 0:
            return [self._empty(weight, b) for b in bits]
        rows = weight.detach().reshape(weight.shape[0], -1)
        # The range of a channel must have a number in fp32; only bf16 weights can be as large.
        unit = 2.0**-16 if weight.dtype == torch.bfloat16 and float(rows.abs().max()) > _LARGE else 1.0
        fitted = self.fit(rows if unit == 1 else rows * unit, bits)
        return [
            QuantizedWeight(self.name, b, tuple(weight.shape), weight.dtype, pack(codes, b), _scaled(found, 1 / unit))
            for b, (codes, found) in zip(bits, fitted)
        ]

    def _empty(self, weight: torch.Tensor, bits: int) -> QuantizedWeight:
        dtypes = self.parameter_dtypes(stored_dtype(weight.dtype))
        parameters = {
            name: torch.zeros(shape, dtype=dtypes[name], device=weight.device)
            for name, shape in self.parameter_shapes(tuple(weight.shape), bits).items()
        }
        codes = torch.zeros(0, dtype=torch.uint8, device=weight.device)
        return QuantizedWeight(self.name, bits, tuple(weight.shape), weight.dtype, codes, parameters)


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit float type that parameters are kept in: bf16 for bf16 weights, fp16 otherwise."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float16


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


def _scaled(parameters: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """Float parameters times a power of two."""
    if factor == 1:
        return parameters
    return {name: t * factor if t.is_floating_point() else t for name, t in parameters.items()}


def check_finite(weight: torch.Tensor) -> None:
    bad = int((~torch.isfinite(weight)).sum()) if weight.numel() else 0
    if bad:
        raise Qua2SeDiMoError(
            f"weight has {bad} NaN or infinite values of {weight.numel()}",
            "Repair the checkpoint, or download it again.",
        )
