"""Scales and offsets of groups of weights by least squares, and their rounding to what a block stores."""

from __future__ import annotations

import numba
import numpy as np
import torch

from qua2sedimo.quantizers.gguf.scales import packed_scales
from qua2sedimo.quantizers.gguf.types import BlockType
from qua2sedimo.quantizers.grids import nearest_level
from qua2sedimo.quantizers.threads import spread

Parameters = dict[str, torch.Tensor]

#: The range of codes as a share of the range of a group's weights: below 1, the farthest weights are cut off.
_REACHES = np.array([1.08, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.62], dtype=np.float32)
_FEW_REACHES = np.array([1.0, 0.98, 0.95], dtype=np.float32)  # from 6 bits on, where cutting off costs more
_REFITS = 2  # alternations of nearest codes and least squares
_TRIED = 12  # sizes of ``d`` of a block
_HALF = torch.finfo(torch.float16).max


def fitted(kind: BlockType, rows: torch.Tensor, columns: torch.Tensor | None) -> Parameters:
    """Parameters of a weight ``rows`` [channels, n], as stored, of least Σ_j c_j·e_j² with the weights ``columns``
    fp32 [n] (None: 1) of squared errors."""
    w = np.ascontiguousarray(rows.float().cpu().numpy())
    c = np.ones(w.shape[1], dtype=np.float32) if columns is None else columns.float().cpu().numpy()
    table = np.array(kind.table, dtype=np.float32)
    reaches = _FEW_REACHES if kind.bits >= 6 else _REACHES
    made = np.zeros((3, len(w), w.shape[1] // kind.group), dtype=np.float32)  # scale, offset, Σ c·q²
    if kind.minimum:
        below = kind.scales is not None  # integers times dmin are subtracted: offsets are not positive
        spread(lambda a, b: _fit_affine(w, c, table, kind.group, reaches, below, made, a, b), len(w), w.size)
    else:
        middles = (table[1:] + table[:-1]) / 2
        spread(lambda a, b: _fit_scaled(w, c, table, middles, kind.group, reaches, made, a, b), len(w), w.size)
    scale, offset, weight = (torch.from_numpy(part).to(rows.device) for part in made)
    if kind.scales is None:
        return {"d": half(scale), **({"m": half(offset)} if kind.minimum else {})}
    per = kind.block // kind.group
    shape = (len(w), -1, per)
    d, scales = _in_integers(scale.view(shape), weight.view(shape), kind.scales)
    if not kind.minimum:
        return {"d": d, "scales": packed_scales(kind, scales, None)}
    counted = torch.from_numpy(c.reshape(-1, kind.group).sum(axis=1)).to(rows.device).expand(len(w), -1)
    dmin, minima = _in_integers(-offset.view(shape), counted.reshape(shape), kind.scales)
    return {"d": d, "dmin": dmin, "scales": packed_scales(kind, scales, minima)}


def half(numbers: torch.Tensor) -> torch.Tensor:
    """As fp16, whose largest number they do not pass."""
    return numbers.clamp(-_HALF, _HALF).to(torch.float16)


def _in_integers(
    numbers: torch.Tensor, weights: torch.Tensor, span: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``d`` fp16 [..., blocks] and integers of a span [..., blocks, groups] with the least Σ weight·(number − d·i)².

    ``d`` is rounded first, and the integers are those for the rounded one.
    """
    peak = numbers.gather(-1, numbers.abs().argmax(dim=-1, keepdim=True))
    least, most = span
    ends = [most] if least == 0 else [least, most]
    best_error = torch.full(peak.shape, torch.inf, device=numbers.device)
    best_d, best = torch.zeros_like(peak), torch.zeros_like(numbers)
    for end in ends:
        for k in range(_TRIED):
            d = half(peak / (end * (1 - 0.25 * k / _TRIED))).float()
            integers = torch.round(numbers / torch.where(d == 0, 1.0, d)).clamp(least, most)
            error = (weights * (numbers - d * integers).square()).sum(dim=-1, keepdim=True)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_d, best = torch.where(better, d, best_d), torch.where(better, integers, best)
    return half(best_d[..., 0]), best


@numba.njit(cache=True, nogil=True)
def _fit_scaled(w, columns, table, middles, group, reaches, made, first, last):  # type: ignore[no-untyped-def]
    """Scale and Σ c·q² of rows ``first`` to ``last``, codes being the nearest entries of the table."""
    for r in range(first, last):
        for g in range(w.shape[1] // group):
            x, c = w[r, g * group : (g + 1) * group], columns[g * group : (g + 1) * group]
            peak = np.float32(0)
            for i in range(group):
                if abs(x[i]) > abs(peak):
                    peak = x[i]
            if peak == 0:
                continue
            most = -1.0
            for k in range(2 * reaches.size + _REFITS):
                if k < 2 * reaches.size:
                    scale = peak * reaches[k // 2] / (table[0] if k % 2 else table[-1])
                else:
                    scale = made[0, r, g]
                if scale == 0:
                    continue
                xq = qq = 0.0
                for i in range(group):
                    q = table[nearest_level(middles, x[i] / scale)]
                    xq += c[i] * x[i] * q
                    qq += c[i] * q * q
                if qq > 0 and xq * xq / qq > most:  # the error is Σ c·x² less this
                    most = xq * xq / qq
                    made[0, r, g], made[2, r, g] = xq / qq, qq


@numba.njit(cache=True, nogil=True)
def _fit_affine(w, columns, table, group, reaches, below, made, first, last):  # type: ignore[no-untyped-def]
    """Scale, offset and Σ c·q² of rows ``first`` to ``last``, codes being 0 to the table's last entry.

    ``below``: no offset is positive.
    """
    top = table[-1]
    for r in range(first, last):
        for g in range(w.shape[1] // group):
            x, c = w[r, g * group : (g + 1) * group], columns[g * group : (g + 1) * group]
            low, high = x.min(), x.max()
            if below:
                low, high = min(low, np.float32(0)), max(high, np.float32(0))
            span, middle = np.float64(high) - low, (np.float64(high) + low) / 2
            if span == 0:
                made[1, r, g] = low
                continue
            least = np.inf
            for k in range(reaches.size + _REFITS):
                if k < reaches.size:
                    scale = span * reaches[k] / top
                    offset = middle - span * reaches[k] / 2
                    if below:
                        offset = min(offset, 0.0)
                else:
                    scale, offset = np.float64(made[0, r, g]), np.float64(made[1, r, g])
                if scale <= 0:
                    continue
                s1 = sx = sq = sxx = sxq = sqq = 0.0
                for i in range(group):
                    q = min(max(np.rint((x[i] - offset) / scale), 0.0), top)
                    s1 += c[i]
                    sx += c[i] * x[i]
                    sq += c[i] * q
                    sxx += c[i] * x[i] * x[i]
                    sxq += c[i] * x[i] * q
                    sqq += c[i] * q * q
                determinant = s1 * sqq - sq * sq
                if determinant > 1e-9 * s1 * sqq:
                    scale, offset = (s1 * sxq - sq * sx) / determinant, (sqq * sx - sq * sxq) / determinant
                    if below and offset > 0:
                        scale, offset = (sxq / sqq if sqq > 0 else 0.0), 0.0
                error = (
                    sxx - 2 * scale * sxq - 2 * offset * sx + scale * scale * sqq + 2 * scale * offset * sq
                    + offset * offset * s1
                )  # fmt: skip
                if error < least:
                    least = error
                    made[0, r, g], made[1, r, g], made[2, r, g] = scale, offset, sqq
