"""The inner product of a quantized weight with a tensor of its shape, without decoding more of it than is needed."""

from __future__ import annotations

import math

import numpy as np
import torch

from qua2sedimo.quantizers.decoding import dequantize_weight, levels_of
from qua2sedimo.quantizers.lookup import kernels_read, product_rows
from qua2sedimo.quantizers.lowrank import LowRank
from qua2sedimo.quantizers.registry import LEVEL_METHODS, METHODS
from qua2sedimo.quantizers.threads import spread
from qua2sedimo.quantizers.value import QuantizedWeight


def inner_product(value: QuantizedWeight, other: torch.Tensor) -> float:
    """⟨Ŵ, other⟩ with ``other`` fp32 in the shape of the weight, on any device, where it is also computed.

    On a CPU codes are looked up row by row and never become a tensor. Of a low-rank weight A·B it is ⟨A, other·Bᵀ⟩,
    where A·B is not rounded to the weight's type.
    """
    rows = other.reshape(value.shape[0], math.prod(value.shape[1:]))
    if rows.numel() == 0:
        return 0.0
    method = METHODS[value.method]
    if isinstance(method, LowRank):
        a, b = method.factors(value.to(rows.device), torch.float32)
        return float(((rows @ b.T) * a).sum(dtype=torch.float64))
    if value.method in LEVEL_METHODS and kernels_read(rows) and kernels_read(value.codes):
        sums, factors = np.empty(len(rows)), rows.contiguous().numpy()
        packed, levels = value.codes.contiguous().numpy(), levels_of(value, torch.float32).numpy()
        spread(lambda x, y: product_rows(packed, value.number, levels, factors, sums, x, y), len(rows), rows.numel())
        return math.fsum(sums)
    decoded = dequantize_weight(value.to(rows.device)).view(rows.shape)
    return float((decoded.float() * rows).sum(dtype=torch.float64))
