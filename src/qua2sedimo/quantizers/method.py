"""What a quantization method is: the interface of the registry's entries, and checks they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers.packing import pack, unpack
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
    def decode(self, codes: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """Codes [channels, -1] and parameters → float32 or 16-bit weights [channels, -1]."""

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

    def dequantize(self, value: QuantizedWeight) -> torch.Tensor:
        """The weight that ``value`` stands for, in its shape and dtype."""
        count = math.prod(value.shape)
        if count == 0:
            return torch.zeros(value.shape, dtype=value.dtype, device=value.codes.device)
        codes = unpack(value.codes, value.bits, count).view(value.shape[0], -1)
        return self.decode(codes, value.parameters).to(value.dtype).reshape(value.shape)

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
        raise Qua2SeDiMoError(f"weight has {bad} NaN or infinite values of {weight.numel()}")


def quantization_error(weight: torch.Tensor, quantized: torch.Tensor) -> tuple[float, float]:
    """(mean |e|^2.4 per weight, relative mean squared error ‖e‖²/‖W‖²), in float64 sums of fp32 terms."""
    if weight.numel() == 0:
        return 0.0, 0.0
    w = weight.detach().float()
    e = (w - quantized.float()).abs_()
    squared = float(torch.sum(e * e, dtype=torch.float64))
    loss = float(torch.sum(e.pow_(2.4), dtype=torch.float64)) / w.numel()
    power = float(torch.sum(w * w, dtype=torch.float64))
    return loss, squared / power if power > 0 else 0.0
