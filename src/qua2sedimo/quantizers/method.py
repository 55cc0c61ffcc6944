"""What a quantization method is: the interface of the registry's entries, and checks they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers.lookup import is_real, kernels_read
from qua2sedimo.quantizers.operator import decode, decode_into, device_kernel, look_up
from qua2sedimo.quantizers.packing import pack
from qua2sedimo.quantizers.value import QuantizedWeight


class Method(ABC):
    """Quantizes a weight [output channels, ...] at several bit widths at once, and decodes the result."""

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

        Raises :class:`Qua2SeDiMoError` on NaN or infinity, which no code can represent.
        """
        check_finite(weight)
        if weight.numel() == 0:
            return [self._empty(weight, b) for b in bits]
        rows = weight.detach().reshape(weight.shape[0], -1)
        return [
            QuantizedWeight(self.name, b, tuple(weight.shape), weight.dtype, pack(codes, b), parameters)
            for b, (codes, parameters) in zip(bits, self.fit(rows, bits))
        ]

    def dequantize(self, value: QuantizedWeight, out: torch.Tensor) -> torch.Tensor:
        """Write the weight that ``value`` stands for to ``out``, of its shape and any float type; returns ``out``.

        On a CPU codes are unpacked, looked up and written in one pass, without a tensor of codes between.
        """
        if value.codes.numel() == 0:
            return out
        levels = self._levels_in(value, out.dtype)
        rows = out.view(out.shape[0], -1)  # never copies: a span of input channels has regular rows too
        kernel = device_kernel(out.device.type)
        if kernels_read(out) and kernels_read(value.codes):
            decode_into(value.codes, levels, value.bits, rows)
        elif kernel is not None and is_real(out) and is_real(value.codes):
            kernel(value.codes, levels, value.bits, rows)
        else:
            rows.copy_(look_up(value.codes, levels, value.bits, *rows.shape))
        return out

    def decode(self, value: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
        """As :meth:`dequantize`, into a new tensor: for code that is compiled or exported, where nothing is in place.

        Where there is a kernel the compiled program calls it; on other devices the compiler fuses the operations.
        """
        levels = self._levels_in(value, dtype)
        if levels.device.type == "cpu" or device_kernel(levels.device.type) is not None:
            return decode(value.codes, levels, value.bits, value.shape)
        channels = value.shape[0]
        return look_up(value.codes, levels, value.bits, channels, math.prod(value.shape[1:])).view(value.shape)

    def _levels_in(self, value: QuantizedWeight, dtype: torch.dtype) -> torch.Tensor:
        """Rounded to the weight's own type first: it is the same weight whatever it is computed in."""
        return self.levels(value.parameters, value.bits).to(value.dtype).to(dtype)

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


def check_finite(weight: torch.Tensor) -> None:
    bad = int((~torch.isfinite(weight)).sum()) if weight.numel() else 0
    if bad:
        raise Qua2SeDiMoError(
            f"weight has {bad} NaN or infinite values of {weight.numel()}",
            "Repair the checkpoint, or download it again.",
        )
