"""Low rank: a weight as the product of two thin factors, for layers whose inputs lie in few directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from qua2sedimo.quantizers.compensation import Target, compensated
from qua2sedimo.quantizers.method import LevelMethod, Method, stored_dtype, times
from qua2sedimo.quantizers.moment import Moment
from qua2sedimo.quantizers.value import QuantizedWeight

_FIRST = 4  # columns of A in 16 bits: they carry most of the output
_HALF = 128  # the code of 0
#: Size of A's columns as they are stored. So both the scales of A and those of B have a number in fp16, for layers of
#: any usual size; for computing, A has size 1, lest B·x has none.
_SIZE = 2.0**-6
_DAMPING = 1e-4  # of the moment; what is inverted here has rank R, and needs less than compensation does


class LowRank(Method):
    """Ŵ = A·B with A [channels, R] and B [R, n], from the SVD of W·S where S·Sᵀ = H is the inputs' second moment.

    Among all products of this rank it has the least output error. B is stored in 8 bits with a scale a row; A in 8 bits
    with a scale a channel, but its first four columns in 16 bits. B is rounded first, A is then fitted to the rounded B
    in closed form and rounded with compensation under B·H·Bᵀ. Columns of A are brought to one size by moving their
    scale into that of B.

    Codes are those of B, row by row, then those of A's other columns, row by row; a code stands for (code − 128)·scale.
    """

    name = "lowrank"
    numbers = range(1, 513)
    quantity = "rank"

    def parameter_shapes(self, shape: tuple[int, ...], number: int) -> dict[str, tuple[int, ...]]:
        """The first columns of the left factor in 16 bits, and the scales of both factors."""
        return {"first": (shape[0], min(_FIRST, number)), "scale_out": (shape[0],), "scale_in": (number,)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        """All have the checkpoint's type."""
        return {"first": stored, "scale_out": stored, "scale_in": stored}

    def width(self, number: int) -> int:
        """Bits of one code of either factor, whatever the rank."""
        return 8

    def code_count(self, shape: tuple[int, ...], number: int) -> int:
        """Codes of both factors of this rank, without the columns that are kept in 16 bits."""
        return number * math.prod(shape[1:]) + shape[0] * max(0, number - _FIRST)

    def factors(self, value: QuantizedWeight, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(A [channels, R], B [R, n]) with A·B = Ŵ in ``dtype``, columns of A of size 1."""
        channels, n, rank = value.shape[0], math.prod(value.shape[1:]), value.number
        wide = torch.promote_types(dtype, torch.float32)
        codes = value.codes.to(wide) - _HALF  # eight bits wide: as they are packed
        p = {name: t.to(wide) for name, t in value.parameters.items()}
        b = codes[: rank * n].view(rank, n) * (p["scale_in"] * _SIZE)[:, None]
        others = codes[rank * n :].view(channels, max(0, rank - _FIRST)) * p["scale_out"][:, None]
        return (torch.cat([p["first"], others], dim=1) / _SIZE).to(dtype), b.to(dtype)

    def dequantized(self, value: QuantizedWeight) -> torch.Tensor:
        """A·B, fp32 [channels, n]: in float64, so that it rounds to the same weight on every machine."""
        on = value.codes.device
        exact = value if on.type in ("cpu", "cuda", "meta") else value.to(torch.device("cpu"))
        a, b = self.factors(exact, torch.float64)
        return (a @ b).float().to(on)

    def _fitted(
        self, rows: torch.Tensor, numbers: Sequence[int], moment: Moment | None
    ) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        weight = rows.double().cpu()
        h = moment or Moment.identity(weight.shape[1])
        roots = h.roots(_DAMPING)
        spans = h.spans()
        turned = torch.cat([weight[:, a:b] @ root for (a, b), root in zip(spans, roots)], dim=1)
        directions = _right_vectors(turned, max(numbers))
        inputs = torch.cat(
            [
                torch.linalg.solve_triangular(root.T, directions[:, a:b].T, upper=True).T
                for (a, b), root in zip(spans, roots)
            ],
            dim=1,
        )
        stored = stored_dtype(rows.dtype)
        found = [_rounded(turned, inputs, rank, spans, roots, stored) for rank in numbers]
        return [(codes.to(rows.device), {k: t.to(rows.device) for k, t in p.items()}) for codes, p in found]

    def _scaled(self, parameters: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
        if factor == 1:
            return parameters
        return {**parameters, "scale_in": times(parameters["scale_in"], factor)}  # B alone: A·B is proportional to it


def _right_vectors(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The first ``count`` right singular vectors as rows [count, n], padded with zeros beyond the matrix's size.

    By eigenvectors of the smaller of its two Gram matrices, several times as fast as by a singular value decomposition
    and exact enough for the largest singular values, which are those that count.
    """
    few = min(count, *matrix.shape)
    if matrix.shape[0] < matrix.shape[1]:
        left = torch.linalg.eigh(_gram(matrix)).eigenvectors[:, -few:].flip(1)
        found = torch.linalg.qr(matrix.T @ left).Q.T
    else:
        found = torch.linalg.eigh(_gram(matrix.T)).eigenvectors[:, -few:].flip(1).T
    return torch.cat([found, found.new_zeros(count - len(found), matrix.shape[1])])


def _rounded(
    turned: torch.Tensor, inputs: torch.Tensor, rank: int, spans: list[tuple[int, int]], roots: list[torch.Tensor],
    stored: torch.dtype,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """(codes, parameters) of the product of this rank, of the weight times S [channels, n]; ``inputs``
    [at least rank, n] are rows of B, unrounded."""
    b = inputs[:rank]
    b = b / b.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
    codes_b = torch.round(b * (_HALF - 1)).clamp(1 - _HALF, _HALF - 1)
    turned_b = torch.cat([codes_b[:, x:y] @ root for (x, y), root in zip(spans, roots)], dim=1)
    under, right = _gram(turned_b), turned_b @ turned.T
    eye = torch.eye(rank, dtype=torch.float64)
    a = torch.linalg.solve(under + 1e-9 * under.diagonal().mean().clamp(min=1e-300) * eye, right).T
    limits = torch.finfo(stored)
    scale_in = a.square().mean(dim=0).sqrt() / _SIZE
    scale_in = scale_in.clamp(limits.tiny, limits.max).to(stored).double()
    a = a / scale_in
    under = scale_in[:, None] * under * scale_in
    first = min(_FIRST, rank)
    kept = a[:, :first].to(stored)
    parameters = {"first": kept, "scale_out": torch.ones(len(turned), dtype=stored), "scale_in": scale_in.to(stored)}
    codes_a = torch.zeros(len(turned), 0, dtype=torch.uint8)
    if rank > first:
        # What the first columns lose by rounding is made up for by the others.
        lost = (a[:, :first] - kept.double()) @ under[:first, first:]
        rest = under[first:, first:] + 1e-9 * under.diagonal().mean() * torch.eye(rank - first, dtype=torch.float64)
        target = (a[:, first:] + torch.linalg.solve(rest, lost.T).T).float()
        mean = float(rest.diagonal().mean())
        codes_a, parameters["scale_out"] = _factor_codes(target, (rest / (mean or 1.0)).float(), stored)
    codes = torch.cat([(codes_b + _HALF).to(torch.uint8).reshape(-1), codes_a.reshape(-1)])
    return codes, parameters


def _factor_codes(target: torch.Tensor, under: torch.Tensor, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes uint8, scales) of a factor [channels, columns] in 8 bits, compensated under ``under``."""
    method = _Centred(stored)
    ((codes, parameters),) = method.fit(target, [8])
    moment = Moment((under,))
    if moment.usable:
        codes, parameters = compensated(method, Target(target, moment), 8, codes, parameters)
    return codes, parameters["scale"]


class _Centred(LevelMethod):
    """Evenly spaced levels around 0 with a scale a row, for factors only: (code − 128)·scale."""

    name = "centred"

    def __init__(self, stored: torch.dtype) -> None:
        self._stored = stored

    def parameter_shapes(self, shape: tuple[int, ...], number: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (shape[0],)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        return {"scale": stored}

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        fitted = []
        for b in bits:
            half = 2 ** (b - 1)
            scale = (weight.abs().amax(dim=1) / (half - 1)).to(self._stored).clamp(min=2.0**-24)
            codes = (torch.round(weight / scale.float()[:, None]) + half).clamp(0, 2 * half - 1).to(torch.uint8)
            fitted.append((codes, {"scale": scale}))
        return fitted

    def levels(self, parameters: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
        scale = parameters["scale"].float()
        return (torch.arange(2**bits, device=scale.device) - 2 ** (bits - 1)) * scale[:, None]


def _gram(rows: torch.Tensor) -> torch.Tensor:
    return rows @ rows.T
