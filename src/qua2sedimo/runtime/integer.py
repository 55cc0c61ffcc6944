"""Linear layers in integer arithmetic: int8 input codes times int8 weight codes, accumulated exactly in int32.

With x̂ = m + Δ·p (int8 codes p, midpoint m and step Δ per token) and ŵ = s·t + o (int8 codes t, scale s and offset o per
output channel)::

    Σ x̂·ŵ = Δ·s·Σ p·t + (Σ x̂)·o + m·s·Σ t

The first term is an int8 matrix product, for which oneDNN has kernels; the other terms are rank-one. The steps before
and after the product each pass over memory once (:mod:`qua2sedimo.runtime.integer_rows`). UAQ levels have this form:
ŵ = s·(q − z), t = q − h, h = 2^(b−1), o = s·(h − z). Those of ``row`` and K-Means do not; they are rounded to a uniform
grid between the smallest and the largest level.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from qua2sedimo.quantizers import LEVEL_METHODS, QuantizedWeight, decode
from qua2sedimo.runtime.integer_rows import parts, rounded_rows, scaled_rows

#: Up to this bit width, rounding uneven levels to 7 bits adds less than 2 % to the squared error (3 bits: 0.3 %).
MOST_CODEBOOK_BITS = 4
#: Shape of the test product: longer than any run of terms that a kernel accumulates in 16 bits.
_ROWS, _LENGTH = 16, 1152


@cache
def multiplies_exactly(bits: int) -> bool:
    """Whether int8 products with weight codes of ``bits`` are exact on this machine, tested at the extreme values.

    Processors without VNNI add pairs of products in 16 bits, which overflows for 8-bit weights.
    """
    half, chance = 2 ** (bits - 1), torch.Generator().manual_seed(0)
    codes, weights = (
        torch.randint(-most, most, (_ROWS, _LENGTH), generator=chance).to(torch.int8) for most in (128, half)
    )
    for extreme, most in ((codes, 128), (weights, half)):
        extreme[0], extreme[1] = -most, most - 1
    try:
        found = torch._int_mm(codes, weights.T)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False  # this PyTorch has no such product
    return torch.equal(found, codes.int() @ weights.int().T)


def codebook_bits() -> int | None:
    """Bit width for rounded levels: the larger of 8 and 7 with exact products here; None if neither."""
    return next((bits for bits in (8, 7) if multiplies_exactly(bits)), None)


def integer_levels(value: QuantizedWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(t: int8 [N or 1, 2^b], s: fp32 [N], o: fp32 [N]): the level of code q in channel c is s[c]·t[c, q] + o[c].

    Exact for UAQ; other levels are rounded to :func:`codebook_bits`.
    """
    half = 2 ** (value.number - 1)
    if value.method == "uaq":
        scale, zero = (value.parameters[name].float() for name in ("scale", "zero"))
        return torch.arange(-half, half, dtype=torch.int8)[None], scale, scale * (half - zero)
    bits = codebook_bits() or 8
    levels = LEVEL_METHODS[value.method].levels(value.parameters, value.number)
    least, greatest = levels.amin(dim=1, keepdim=True), levels.amax(dim=1, keepdim=True)
    step = (greatest - least) / (2**bits - 1)
    step = torch.where(step > 0, step, 1.0)
    table = torch.round((levels - least) / step) - 2 ** (bits - 1)
    offset = least + step * 2 ** (bits - 1)
    channels = value.shape[0]
    return table.to(torch.int8), step[:, 0].expand(channels), offset[:, 0].expand(channels)


@torch.library.custom_op("qua2sedimo::integer_linear", mutates_args=())
def integer_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    table: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    act_bits: int,
) -> torch.Tensor:
    """A Linear layer with a packed weight [N, K] on ``x`` [..., K] quantized to ``act_bits``; returns [..., N].

    ``codes`` are the weight's packed codes of ``bits`` each; ``table``, ``scale`` and ``offset`` are its
    :func:`integer_levels`. The result has the dtype of ``x``. Requires a CPU for which
    :func:`multiplies_exactly` is true.
    """
    n, k = scale.shape[0], x.shape[-1]
    rows = x.reshape(-1, k)
    codes_of, middle, step, total = rounded_rows(rows, act_bits)
    of_tokens = torch.stack([step, step * total + k * middle, middle], dim=1)
    shift = torch.zeros(n) if bias is None else bias.float()
    t = decode(codes, table, bits, (n, k))
    y, one = x.new_empty(len(rows), n), torch.ones(1, k, dtype=torch.int8)
    for part in parts(n, len(rows)):
        sums = torch._int_mm(one, t[part].T)[0]
        of_channels = torch.stack([scale[part], offset[part], scale[part] * sums, shift[part]])
        y[:, part] = scaled_rows(torch._int_mm(codes_of, t[part].T), of_tokens, of_channels)
    return y.view(*x.shape[:-1], n)


@integer_linear.register_fake
def _(
    x: torch.Tensor,
    codes: torch.Tensor,
    table: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    act_bits: int,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], scale.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, codes, table, scale, offset, bias, bits, _ = inputs
    ctx.save_for_backward(codes, table, scale, offset)
    ctx.bits, ctx.width, ctx.type = bits, x.shape[-1], x.dtype
    ctx.bias_type = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Straight-through gradients of the input, and gradients of the bias; packed weights have none."""
    codes, table, scale, offset = ctx.saved_tensors
    of_input = of_bias = None
    if ctx.needs_input_grad[0]:
        t = decode(codes, table, ctx.bits, (scale.shape[0], ctx.width)).float()
        of_input = (grad.float() @ torch.addcmul(offset[:, None], t, scale[:, None])).to(ctx.type)
    if ctx.needs_input_grad[5]:
        of_bias = grad.reshape(-1, scale.shape[0]).float().sum(dim=0).to(ctx.bias_type)
    return of_input, None, None, None, None, of_bias, None, None


integer_linear.register_autograd(_backward, setup_context=_keep)
