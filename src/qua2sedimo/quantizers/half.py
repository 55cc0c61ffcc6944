"""Half: the 16-bit weight itself, for layers that are worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from qua2sedimo.quantizers.method import Method
from qua2sedimo.quantizers.moment import Moment
from qua2sedimo.quantizers.value import QuantizedWeight


class HalfWeight(Method):
    """ŵ = w: fp16, or bf16 for bf16 weights. There are no codes."""

    name = "half"
    numbers = (16,)

    def parameter_shapes(self, shape: tuple[int, ...], number: int) -> dict[str, tuple[int, ...]]:
        """The weight."""
        return {"exact": shape}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        """That of the checkpoint."""
        return {"exact": stored}

    def code_count(self, shape: tuple[int, ...], number: int) -> int:
        """None."""
        return 0

    def quantize(
        self, weight: torch.Tensor, numbers: Sequence[int], moment: Moment | None = None
    ) -> list[QuantizedWeight]:
        """The weight as it is."""
        self.check(weight, numbers)
        return [self._empty(weight, n) if weight.numel() == 0 else self._kept(weight, n) for n in numbers]

    def dequantized(self, value: QuantizedWeight) -> torch.Tensor:
        """The weight."""
        return value.parameters["exact"].float().view(value.shape[0], math.prod(value.shape[1:]))

    def _kept(self, weight: torch.Tensor, number: int) -> QuantizedWeight:
        stored = weight.detach().to(torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float16)
        nothing = torch.empty(0, dtype=torch.uint8, device=weight.device)
        return QuantizedWeight(
            self.name, number, tuple(weight.shape), weight.dtype, nothing, {"exact": stored.contiguous().clone()}
        )

    def _fitted(
        self, rows: torch.Tensor, numbers: Sequence[int], moment: Moment | None
    ) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        return [(torch.empty(0, dtype=torch.uint8), {"exact": rows}) for _ in numbers]
