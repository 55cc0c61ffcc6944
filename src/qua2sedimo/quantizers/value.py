"""A quantized weight as a value: packed codes, parameters, shape. It knows nothing of models."""

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

    def dequantize(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The weight, ``shape`` and ``dtype`` as given, bit-identical wherever the file is read; written to
        ``out`` and cast to its float type if there is one: in place, also to a part of a larger weight.
        """
        from qua2sedimo.quantizers.registry import METHODS  # registry imports the methods, they import this

        if out is None:
            out = torch.empty(self.shape, dtype=self.dtype, device=self.codes.device)
        return METHODS[self.method].dequantize(self, out)

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """As :meth:`dequantize` into a new tensor of ``dtype``, for code that is compiled or exported."""
        from qua2sedimo.quantizers.registry import METHODS

        return METHODS[self.method].decode(self, dtype)
