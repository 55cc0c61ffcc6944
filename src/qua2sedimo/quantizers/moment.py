"""The second moment of a layer's inputs, under which errors of its weight become errors of its output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from qua2sedimo.quantizers.error import unit_of

#: Share of the mean diagonal that is added to the diagonal before a moment is inverted. A tenth costs 1.0 to 1.5 dB of
#: picture quality, a thousandth 0.4 dB (docs/method.md).
DAMPING = 0.01
_PLAIN = 40  # powers of two within which the mean diagonal leaves errors of ordinary weights a number in fp32


@dataclass(frozen=True, eq=False)
class Factor:
    """What compensation needs of one block of a moment, its columns ordered by falling diagonal.

    Shapes: order: int64 [n], the block's columns in that order; moment: fp32 [n, n], damped, in that order; feedback:
    fp32 [n, n], upper triangular with ones on the diagonal, U with H⁻¹ = Uᵀ·D²·U; diagonal: fp32 [n], D.
    """

    order: torch.Tensor
    moment: torch.Tensor
    feedback: torch.Tensor
    diagonal: torch.Tensor


@dataclass(frozen=True, eq=False)
class Moment:
    """H = E[x xᵀ] of a layer's inputs x, fp32, symmetric, as consecutive diagonal blocks [n_i, n_i].

    Inputs are in the order of the weight as [channels, n]; of a convolution they are unfolded. A single block is the
    whole moment; for more, products of inputs in different blocks are taken to be 0 on average.
    """

    blocks: tuple[torch.Tensor, ...]

    @classmethod
    def identity(cls, n: int) -> Moment:
        """The moment of n independent inputs of variance 1: under it, output errors are weight errors."""
        return cls((torch.eye(n),))

    @property
    def inputs(self) -> int:
        """n, the number of inputs."""
        return sum(len(block) for block in self.blocks)

    @cached_property
    def problem(self) -> str | None:
        """Why nothing can be learned from this moment; None if it can be used."""
        if not all(bool(torch.isfinite(block).all()) for block in self.blocks):
            return "its inputs overflowed: their second moment is not finite"
        if not any(float(block.diagonal().max()) > 0 for block in self.blocks):
            return "its inputs were all zero"
        return None

    @property
    def usable(self) -> bool:
        return self.problem is None

    @property
    def normal(self) -> Moment:
        """This moment times a power of two that brings its mean diagonal near 1; itself if that is near enough."""
        return self if self._scaled is None else self._scaled

    @cached_property
    def _scaled(self) -> Moment | None:  # None for itself: with a reference to itself, it would not be freed at once
        power = math.frexp(self._mean)[1]
        if abs(power) <= _PLAIN:
            return None
        return Moment(tuple((block.double() * 2.0**-power).float() for block in self.blocks))

    @property
    def _mean(self) -> float:
        return sum(float(block.diagonal().double().sum()) for block in self.blocks) / max(1, self.inputs)

    @cached_property
    def dimension(self) -> float:
        """tr(H)² / tr(H²): about how many directions the inputs lie in, from 1 to n."""
        trace = sum(float(block.diagonal().sum(dtype=torch.float64)) for block in self.blocks)
        squares = sum(float(block.square().sum(dtype=torch.float64)) for block in self.blocks)
        return trace**2 / squares if squares > 0 else 0.0

    def spans(self) -> list[tuple[int, int]]:
        """First and last column (exclusive) of each block."""
        ends, at = [], 0
        for block in self.blocks:
            ends.append((at, at + len(block)))
            at += len(block)
        return ends

    def errors(self, difference: torch.Tensor) -> torch.Tensor:
        """d·H·dᵀ of every row d of ``difference`` [rows, n]: the mean squared error of its output, float64 [rows]."""
        total = torch.zeros(len(difference), dtype=torch.float64)
        unit = unit_of(difference) if difference.numel() else 1.0  # one in which squares have numbers in fp32
        for (a, b), block in zip(self.spans(), self.blocks):
            d = difference[:, a:b].float() * unit if unit != 1 else difference[:, a:b].float()
            total += torch.sum((d @ block.to(d.device)) * d, dim=1, dtype=torch.float64).cpu()
        return total.clamp_(min=0) / unit**2

    def output_errors(
        self, weight: torch.Tensor, quantized: torch.Tensor, power: float | None = None
    ) -> tuple[torch.Tensor, float]:
        """(e_c of each channel of two weights [channels, ...], fp64; Σ_c e_c / tr(W·H·Wᵀ), 0 if the output is 0).
        ``power``: :meth:`power` of the weight, where it is known."""
        rows = weight.float().reshape(len(weight), -1) / 4  # so that differences have a number in fp32
        errors = 16 * self.errors(rows - quantized.float().reshape(rows.shape) / 4)
        power = self.power(weight) if power is None else power
        return errors, float(errors.sum()) / power if power > 0 else 0.0

    def power(self, weight: torch.Tensor) -> float:
        """tr(W·H·Wᵀ): the mean squared output of a weight [channels, ...]."""
        return 16 * float(self.errors(weight.float().reshape(len(weight), -1) / 4).sum())

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """Each block as compensation needs it; a block that saw only zeros counts as independent inputs."""
        return tuple(_factor(block) for block in self.blocks)

    def roots(self, damping: float) -> list[torch.Tensor]:
        """S with S·Sᵀ = H + damping · mean diagonal, lower triangular, float64, of each block.

        A block that saw only zeros gets the damping of the mean block: it must not count more than what was seen.
        """
        added = damping * self._mean if self._mean > 0 else 1.0
        return [
            _root(damped(block.double(), damping) if float(block.diagonal().max()) > 0 else _eye(block, added))
            for block in self.blocks
        ]


def damped(block: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """A moment [n, n] plus ``damping`` times its mean diagonal; the identity for one of zeros alone."""
    mean = float(block.diagonal().mean())
    added = damping * mean if mean > 0 else 1.0
    return block + added * torch.eye(len(block), dtype=block.dtype, device=block.device)


def _eye(block: torch.Tensor, diagonal: float) -> torch.Tensor:
    return diagonal * torch.eye(len(block), dtype=torch.float64, device=block.device)


def _factor(block: torch.Tensor) -> Factor:
    order = torch.argsort(block.diagonal(), descending=True, stable=True)
    h = damped(block.double()[order][:, order])
    # H = M·Mᵀ with M upper triangular, by the Cholesky factor of H read backwards; then H⁻¹ = (M⁻¹)ᵀ·M⁻¹.
    upper = _root(h.flip(0, 1)).flip(0, 1)
    inverse = torch.linalg.solve_triangular(upper, torch.eye(len(h), dtype=h.dtype), upper=True)
    diagonal = inverse.diagonal().clone()
    return Factor(order, h.float().contiguous(), (inverse / diagonal[:, None]).float().contiguous(), diagonal.float())


def _root(h: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor; a matrix that rounding made indefinite gets more on its diagonal."""
    mean = h.diagonal().mean()
    eye = torch.eye(len(h), dtype=h.dtype)
    for more in (0.0, 1e-6, 1e-4, 1e-2):
        root, info = torch.linalg.cholesky_ex(h + more * mean * eye)
        if int(info) == 0:
            return root
    return torch.diag(h.diagonal().clamp(min=float(mean) * 1e-6).sqrt())
