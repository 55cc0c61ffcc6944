"""UAQ: uniform affine quantization per output channel, with a search for the best shrink of the range."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qua2sedimo.quantizers.error import power
from qua2sedimo.quantizers.method import LevelMethod, stored_dtype

#: Candidate shrinks of a channel's range; the paper's grid.
SHRINKS = tuple(s / 10 for s in range(10, 0, -1))
_ZERO_LIMIT = 2**15 - 1  # zero points are stored as int16
_SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126}  # positive numbers of the stored types
_CHUNK = 1 << 16  # weights searched at a time: temporaries stay in the processor's cache


class UniformAffine(LevelMethod):
    """q = clamp(round(w/Δ) + z, 0, 2^b − 1), ŵ = (q − z)·Δ, a scale Δ and zero point z per output channel.

    For each shrink s: max' = s·max, min' = s·min, Δ = (max' − min')/(2^b − 1), z = round(−min'/Δ); the s with
    the least mean |w − ŵ|^2.4 is kept. Δ is rounded to its stored type before any code is assigned, so the
    search sees the very tensor that the file gives back. The search runs in fp32: in fp16 |e|^2.4 underflows.
    """

    name = "uaq"

    def parameter_shapes(self, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (shape[0],), "zero": (shape[0],)}

    def parameter_dtypes(self, stored: torch.dtype) -> dict[str, torch.dtype]:
        return {"scale": stored, "zero": torch.int16}

    def fit(self, weight: torch.Tensor, bits: Sequence[int]) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        stored = stored_dtype(weight.dtype)
        rows = max(1, _CHUNK // max(1, weight.shape[1]))
        results = []
        for b in bits:
            parts = [_fit_rows(part.float(), b, stored) for part in weight.split(rows)]
            codes, scale, zero = (torch.cat(column) for column in zip(*parts))
            results.append((codes, {"scale": scale, "zero": zero.to(torch.int16)}))
        return results

    def levels(self, parameters: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
        zero, scale = parameters["zero"].float()[:, None], parameters["scale"].float()[:, None]
        return (torch.arange(2**bits, device=scale.device) - zero) * scale


def _fit_rows(w: torch.Tensor, bits: int, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    top = 2**bits - 1
    low, high = w.amin(dim=1), w.amax(dim=1)
    span = torch.where(high > low, high - low, 1.0)[:, None]  # in its unit no |e|^2.4 underflows
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for shrink in SHRINKS:
        scale, zero = _grid(shrink * low, shrink * high, top, stored)
        error = power(_snap(w, scale, zero, top).sub_(w).abs_().div_(span)).mean(dim=1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    codes = torch.clamp(torch.round(w / best_scale[:, None]) + best_zero[:, None], 0, top).to(torch.uint8)
    return codes, best_scale.to(stored), best_zero


def _grid(low: torch.Tensor, high: torch.Tensor, top: int, stored: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (rounded as stored) and integer zero point of the range [low, high] of each channel."""
    constant = low == high
    value = low
    scale = _rounded((high - low) / top, stored)
    zero = torch.round(-low / scale)
    # A range so narrow and far from 0 that its zero point does not fit: widen it to include 0.
    wide = zero.abs() > _ZERO_LIMIT
    if bool(wide.any()):
        low, high = torch.where(wide, low.clamp(max=0), low), torch.where(wide, high.clamp(min=0), high)
        scale = torch.where(wide, _rounded((high - low) / top, stored), scale)
        zero = torch.where(wide, torch.round(-low / scale), zero)
    # A constant channel is its own scale: one code away from a zero point at 0 (or at 1 when negative).
    scale = torch.where(constant, torch.where(value == 0, torch.ones_like(value), value.abs()), scale)
    zero = torch.where(constant, (value < 0).float(), zero)
    return scale.to(stored).float(), zero


def _rounded(scale: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """As it will be read back: never zero, which would lose the channel, and never beyond the largest number."""
    return scale.clamp(max=torch.finfo(stored).max).to(stored).float().clamp(min=_SMALLEST[stored])


def _snap(w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int) -> torch.Tensor:
    scale, zero = scale[:, None], zero[:, None]
    return torch.round(w / scale).add_(zero).clamp_(0, top).sub_(zero).mul_(scale)
