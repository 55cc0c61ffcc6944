"""Uniform asymmetric quantization of rows in groups, from the smallest to the largest weight: what rivals build on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_TINY = 1e-8  # of a range: a group of equal weights has a scale too


@dataclass(frozen=True)
class Grid:
    """Levels scale · (k − zero), k = 0 … 2^bits − 1, of each row; fp32 [rows, 1], scales as fp16 holds them."""

    scale: torch.Tensor
    zero: torch.Tensor
    bits: int

    @classmethod
    def of(cls, weights: torch.Tensor, bits: int) -> Grid:
        """The grid of every row of ``weights`` [rows, n] that reaches from its smallest to its largest, and has 0."""
        low = weights.amin(1, keepdim=True).clamp(max=0)
        high = weights.amax(1, keepdim=True).clamp(min=0)
        scale = ((high - low).clamp(min=_TINY) / (2**bits - 1)).half().float().clamp(min=2**-24)
        return cls(scale, (-low / scale).round().clamp(0, 2**bits - 1), bits)

    @classmethod
    def best(cls, weights: torch.Tensor, bits: int) -> Grid:
        """The same with ends shrunk by a factor a row, the one of least squared error."""
        found = cls.of(weights, bits)
        least = (found.nearest(weights) - weights).square().sum(1, keepdim=True)
        for factor in torch.arange(0.99, 0.3, -0.01).tolist():
            low, high = factor * weights.amin(1, keepdim=True), factor * weights.amax(1, keepdim=True)
            other = cls.of(torch.cat([low, high], dim=1), bits)
            error = (other.nearest(weights) - weights).square().sum(1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            found = cls(
                torch.where(better, other.scale, found.scale), torch.where(better, other.zero, found.zero), bits
            )
        return found

    def nearest(self, weights: torch.Tensor) -> torch.Tensor:
        """Every weight [rows, n] at its nearest level."""
        codes = (weights / self.scale + self.zero).round().clamp(0, 2**self.bits - 1)
        return self.scale * (codes - self.zero)


def nearest(weight: torch.Tensor, bits: int, group: int | None = None) -> torch.Tensor:
    """Every weight [rows, n] at the nearest level of its group's grid; without ``group`` a row is one."""
    pieces = weight.float().split(group or weight.shape[1], dim=1)
    return torch.cat([Grid.of(piece, bits).nearest(piece) for piece in pieces], dim=1)


def packed_bytes(rows: int, columns: int, bits: int, group: int | None = None) -> int:
    """Bytes of codes, an fp16 scale a group, and zero points in as many bits as a code."""
    groups = rows * -(-columns // (group or columns))
    return -(-rows * columns * bits // 8) + 2 * groups + -(-groups * bits // 8)
