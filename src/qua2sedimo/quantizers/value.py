"""A quantized weight as a value: packed codes, parameters, shape. It knows neither models nor methods."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class QuantizedWeight:
    """What is stored for one weight tensor.

    ``number`` tells options of one method apart: the bit width of a code or, for ``lowrank``, the rank. ``codes`` is
    uint8, packed as in :mod:`qua2sedimo.quantizers.packing`: [⌈N·bits/8⌉] over the whole tensor in row-major order, or
    the codes of two factors. ``parameters`` are the 16-bit tensors the method needs (``scale`` and ``zero``,
    ``codebook``, …); ``shape`` is the weight's, output channels first; ``dtype`` that of the dequantized weight.
    """

    method: str
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    codes: torch.Tensor
    parameters: dict[str, torch.Tensor]

    @property
    def option(self) -> str:
        """Method and number as in a configuration: ``uaq-4``."""
        return f"{self.method}-{self.number}"

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same value with its tensors on a device."""
        parameters = {name: tensor.to(device) for name, tensor in self.parameters.items()}
        return replace(self, codes=self.codes.to(device), parameters=parameters)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and parameters: exactly what a packed checkpoint stores."""
        return sum(t.numel() * t.element_size() for t in (self.codes, *self.parameters.values()))
