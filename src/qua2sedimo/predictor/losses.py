"""Ranking losses: do scores order the configurations as their relevance does?"""

from __future__ import annotations

import torch
from torch.nn import functional

LOSSES = ("srcc", "lambdarank", "hybrid", "mse")


def soft_rank(scores: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Differentiable ascending ranks [n]: ½ + Σ_j σ((s_i − s_j)/τ), with τ relative to the scores' spread.

    Tends to the ranks 1 … n as τ → 0; sums to n(n+1)/2 minus n/2·(…) exactly as ranks do for distinct scores.
    """
    spread = scores.detach().std().clamp(min=1e-12)
    return 0.5 + torch.sigmoid((scores[:, None] - scores[None, :]) / (temperature * spread)).sum(dim=1)


def srcc_loss(scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """1 − Pearson correlation of the soft ranks of scores with the ranks of relevance, both [n]."""
    ranks = mean_ranks(relevance)
    soft = soft_rank(scores)
    return 1 - functional.cosine_similarity(soft - soft.mean(), ranks - ranks.mean(), dim=0)


def lambdarank_loss(scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Σ over pairs r_i > r_j of |ΔNDCG_ij| · log(1 + exp(−(s_i − s_j))), [n], [n] → scalar.

    |ΔNDCG_ij| is what swapping i and j in the order of the *current* scores would change; gains are 2^r − 1 for
    relevance scaled to 0 … 3, discounts 1/log2(1 + position). (Burges 2010, MSR-TR-2010-82.)
    """
    weights = ndcg_swap_weights(scores.detach(), relevance)
    spread = scores.detach().std().clamp(min=1e-12)
    margin = (scores[:, None] - scores[None, :]) / spread
    better = (relevance[:, None] > relevance[None, :]).to(scores.dtype)
    return (better * weights * functional.softplus(-margin)).sum() / better.mul(weights).sum().clamp(min=1e-12)


def ndcg_swap_weights(scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """|ΔNDCG| of swapping each pair in the order of scores: [n, n]."""
    low, high = relevance.min(), relevance.max()
    gain = 2 ** (3 * (relevance - low) / (high - low).clamp(min=1e-12)) - 1
    position = torch.empty_like(scores)
    position[scores.argsort(descending=True)] = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    discount = 1 / torch.log2(1 + position)
    places = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    ideal = (gain.sort(descending=True).values / torch.log2(1 + places)).sum().clamp(min=1e-12)
    return (gain[:, None] - gain[None, :]).abs() * (discount[:, None] - discount[None, :]).abs() / ideal


def ranking_loss(name: str, scores: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """The ranking part of the loss by name; ``mse`` has none."""
    if name == "srcc":
        return srcc_loss(scores, relevance)
    if name == "lambdarank":
        return lambdarank_loss(scores, relevance)
    if name == "hybrid":
        return (srcc_loss(scores, relevance) + lambdarank_loss(scores, relevance)) / 2
    return scores.sum() * 0


def mean_ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks 1 … n, ties sharing their mean rank: [n]."""
    less = (values[:, None] > values[None, :]).sum(dim=1)
    equal = (values[:, None] == values[None, :]).sum(dim=1)
    return (less + (equal + 1) / 2).to(values.dtype)
