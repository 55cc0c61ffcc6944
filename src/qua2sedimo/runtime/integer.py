"""UAQ layers in integers: 8-bit codes of the input times codes of the weight, summed exactly in 32 bits.

With x̂ = l + Δ·p (codes p of a token) and ŵ = s·(q − z) (codes q of a channel), and q' = q − h centred at h = 2^(b−1)::

    Σ x̂·ŵ = Δ·s·Σ p·q' + (Σ x̂)·s·(h − z) + l·s·Σ q'

The first term is a product of an unsigned and a signed 8-bit matrix, for which oneDNN has kernels; the others are
products of a number of the token and one of the channel.
"""

from __future__ import annotations

from functools import cache

import torch

from qua2sedimo.quantizers import decode

_LENGTH = 64  # of the products that are tried: longer than any step in which a kernel sums in 16 bits


@cache
def multiplies_exactly(bits: int) -> bool:
    """Whether integer products with weights of ``bits`` are right on this machine, the greatest ones too.

    Processors without VNNI add pairs of products in 16 bits, which overflows from 8-bit weights on.
    """
    try:
        codes = torch.full((2, _LENGTH), 255, dtype=torch.uint8)
        weights = torch.tensor([[-(2 ** (bits - 1))], [2 ** (bits - 1) - 1]], dtype=torch.int8).repeat(1, _LENGTH)
        found = _product(codes, weights, torch.ones(2))
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False  # this PyTorch has no such product
    return torch.equal(found, codes.float() @ weights.float().T)


@torch.library.custom_op("qua2sedimo::integer_linear", mutates_args=())
def integer_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    act_bits: int,
) -> torch.Tensor:
    """The Linear layer of a UAQ weight [N, K], packed in ``codes``, on ``x`` [..., K] rounded to ``act_bits``.

    ``scale`` and ``zero`` [N] are the weight's; the result [..., N] has the type of ``x``. Only for a CPU that
    :func:`multiplies_exactly`.
    """
    n, k = scale.shape[0], x.shape[-1]
    rows = x.reshape(-1, k).float()
    least, greatest = rows.aminmax(dim=1, keepdim=True)
    step = (greatest - least) / (2**act_bits - 1)
    step = torch.where(step > 0, step, 1.0)
    p = (rows - least).div_(step).round_().to(torch.uint8)
    half = 2 ** (bits - 1)
    centred = torch.arange(-half, half, dtype=torch.int8)[None]
    q = decode(codes, centred, bits, (n, k))
    scale, zero = scale.float(), zero.float()
    y = _product(p, q, scale).mul_(step)
    of_tokens = [step * p.sum(dim=1, keepdim=True) + k * least, least]
    of_channels = [(half - zero) * scale, q.sum(dim=1) * scale]
    if bias is not None:
        of_tokens.append(torch.ones_like(least))
        of_channels.append(bias.float())
    y.addmm_(torch.cat(of_tokens, dim=1), torch.stack(of_channels))
    return y.to(x.dtype).view(*x.shape[:-1], n)


@integer_linear.register_fake
def _(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    act_bits: int,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], scale.shape[0])


def _product(p: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """p·qᵀ·scale in fp32 [M, N] for codes p (uint8 [M, K]) and q (int8 [N, K]), scale [N]."""
    weight = torch.ops.onednn.qlinear_prepack(q, p.shape)
    zeros = torch.zeros(len(q), dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        p, 1.0, 0, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
