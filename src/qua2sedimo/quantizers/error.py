"""How much a quantized weight differs: one scale for all methods."""

from __future__ import annotations

import math

import torch

#: Exponent of the error that selects UAQ's shrink and that all methods report; the paper's.
EXPONENT = 2.4
_PLAIN = 40  # powers of two within which squares and |e|^2.4 of weights have numbers in fp32
_CHUNK = 1 << 16  # weights at a time: temporaries stay in the processor's cache


def power(error: torch.Tensor) -> torch.Tensor:
    """|e|^2.4, in place, for e ≥ 0; three times as fast as ``pow``, and 0 stays 0."""
    return error.log2_().mul_(EXPONENT).exp2_()


def quantization_error(weight: torch.Tensor, quantized: torch.Tensor) -> tuple[float, float]:
    """(mean of ``|e|^2.4`` per weight, relative mean squared error ‖e‖²/‖W‖²), of two tensors of one shape.

    Terms are fp32, in a unit in which their squares have a number; sums are float64.
    """
    if weight.numel() == 0:
        return 0.0, 0.0
    loss = squared = square = 0.0
    unit = unit_of(weight)
    for w, q in zip(weight.detach().reshape(-1).split(_CHUNK), quantized.detach().reshape(-1).split(_CHUNK)):
        w, q = w.float(), q.float()
        if unit != 1:
            w, q = w * unit, q * unit
        e = (w - q).abs_()
        square += float(torch.sum(w * w, dtype=torch.float64))
        squared += float(torch.sum(e * e, dtype=torch.float64))
        loss += float(torch.sum(power(e), dtype=torch.float64))
    return loss / weight.numel() * unit**-EXPONENT, squared / square if square > 0 else 0.0


def unit_of(weight: torch.Tensor) -> float:
    """A power of two that brings the largest weight near 1; 1 where the squares of weights have numbers anyway.

    It has a number in fp32, and so has its inverse.
    """
    largest = max(abs(float(extreme)) for extreme in torch.aminmax(weight.detach()))
    power = math.frexp(largest)[1]
    return 2.0 ** max(-120, min(-power, 120)) if largest and abs(power) > _PLAIN else 1.0
