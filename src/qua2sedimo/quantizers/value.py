"""A quantized weight as a value: packed codes, parameters, shape. It knows neither models nor methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class QuantizedWeight:
    """What is stored for one weight tensor.

    ``codes`` is uint8 [⌈N·bits/8⌉], packed as in :mod:`qua2sedimo.quantizers.packing` over the whole tensor in
    row-major order; ``parameters`` are the 16-bit tensors the method needs (``scale`` and ``zero``, or
    ``codebook``); ``shape`` is the weight's, output channels first; ``dtype`` that of the dequantized weight.
    """

    method: str
    bits: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    codes: torch.Tensor
    parameters: dict[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and parameters: exactly what a packed checkpoint stores."""
        return sum(t.numel() * t.element_size() for t in (self.codes, *self.parameters.values()))
