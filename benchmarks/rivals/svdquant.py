"""The low-rank branch of SVDQuant (Li et al., ICLR 2025, arXiv:2411.05007), of weights alone.

W = L₁·L₂ + R: L₁ = U·Σ and L₂ = Vᵀ are the first ``rank`` singular triplets of W, kept in 16 bits (its §4.2); the
residual R, whose norm is that of the other singular values, is quantized in groups. The paper smooths activations into
the weights before; weights alone, as here, have no activations to smooth.
"""

from __future__ import annotations

import torch

from rivals import uniform


def split(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(L₁ [rows, rank], L₂ [rank, n], R [rows, n]) of a weight [rows, n]; L₁ and L₂ as fp16 holds them."""
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    first = (u[:, :rank] * s[:rank]).half().double()
    second = v[:rank].half().double()
    return first.float(), second.float(), (weight.double() - first @ second).float()


def svdquant(weight: torch.Tensor, bits: int, rank: int = 32, group: int | None = 64) -> torch.Tensor:
    """Weights [rows, n] as their low-rank branch and the nearest levels of what it leaves."""
    first, second, rest = split(weight, rank)
    return first @ second + uniform.nearest(rest, bits, group)


def packed_bytes(rows: int, columns: int, bits: int, rank: int = 32, group: int | None = 64) -> int:
    """Bytes of the branch in 16 bits and of the residual."""
    return 2 * rank * (rows + columns) + uniform.packed_bytes(rows, columns, bits, group)
