"""The graph network: node embedding, GATv2 hops, and a readout per hop."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class GATv2(nn.Module):
    """Graph attention v2 (arXiv 2105.14491) over one graph and many configurations at once.

    e_ij = aᵀ LeakyReLU(W_r x_i + W_l x_j), α = softmax over the sources j of i (itself included), and
    x_i' = Σ_j α_ij W_l x_j + bias. Topology is shared, so a batch is a dense tensor.

    Args:
        channels: input and output width.
    Shapes:
        x: [batch, nodes, channels]; edges: int64 [2, edges], source above target → [batch, nodes, channels].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.attention = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.attention, std=channels**-0.5)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        nodes = torch.arange(x.shape[1], device=x.device)
        source, target = torch.cat([edges[0], nodes]), torch.cat([edges[1], nodes])
        sent, received = self.source(x), self.target(x)
        messages = sent.index_select(1, source)  # its gradient is index_add, much faster than that of sent[:, source]
        logits = (
            functional.leaky_relu(messages + received.index_select(1, target), 0.2) @ self.attention
        )  # [batch, edges]
        peak = torch.full(x.shape[:2], -torch.inf, device=x.device, dtype=x.dtype)
        peak = peak.scatter_reduce(1, target.expand_as(logits), logits.detach(), "amax")
        weight = (logits - peak.index_select(1, target)).exp()
        total = torch.zeros_like(peak).index_add(1, target, weight)
        mixed = torch.zeros_like(sent).index_add(
            1, target, messages * (weight / total.index_select(1, target))[..., None]
        )
        return mixed + self.bias


class OptionEmbedding(nn.Module):
    """h⁰ = softplus(a(x) − exp(s(x) + ln e)): a node loses norm in proportion to its quantization error e.

    To first order the images' squared error is a sum over layers of sensitivity × relative error of the weights; s
    learns the logarithm of that sensitivity from what a layer is (operation, block, identity, method), and the
    measured error enters as it is. Combine nodes have no error, so only a(x) speaks for them.

    Shapes:
        x: [..., features] with ln e, centred, in column 0 and in column 1 whether the node has an error.
    """

    # At the start every norm falls linearly with damage over most of the range of errors.
    _LEVEL, _LOG_SENSITIVITY = 2.0, -3.0

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.level, self.log_sensitivity = nn.Linear(features - 1, channels), nn.Linear(features - 1, channels)
        for linear, bias in ((self.level, self._LEVEL), (self.log_sensitivity, self._LOG_SENSITIVITY)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.constant_(linear.bias, bias)

    def damage(self, x: torch.Tensor) -> torch.Tensor:
        """exp(s(x))·e, zero for nodes without an error: [..., channels]."""
        log_damage = self.log_sensitivity(x[..., 1:]) + x[..., :1]
        return log_damage.clamp(max=8).exp() * x[..., 1:2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.softplus(self.level(x[..., 1:]) - self.damage(x))


class HopNetwork(nn.Module):
    """h⁰ = embed(x); hᵐ = relu(hᵐ⁻¹ + GATv2(hᵐ⁻¹)); ŷ = MLP(means of h⁰ … h^M, log mean damage).

    Every embedding is non-negative, so that the 1-norm of a mean of embeddings is the mean of their 1-norms: the
    norm at hop m splits into the contributions of its roots.
    """

    def __init__(self, features: int, channels: int = 32, hops: int = 4) -> None:
        super().__init__()
        self.embed = OptionEmbedding(features, channels)
        self.hops = nn.ModuleList(GATv2(channels) for _ in range(hops))
        self.regress = nn.Sequential(nn.Linear((hops + 2) * channels, channels), nn.SiLU(), nn.Linear(channels, 1))
        self.direct = nn.Linear(channels, 1)
        nn.init.constant_(self.direct.weight, -0.2 / channels)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """x [batch, nodes, features] → (ŷ [batch], embeddings at hops 0 … M, each [batch, nodes, channels])."""
        h = [self.embed(x)]
        for hop in self.hops:
            h.append(functional.relu(h[-1] + hop(h[-1], edges)))
        damage = torch.log(self.embed.damage(x).mean(dim=1) + 1e-6)
        pooled = torch.cat([damage, *(level.mean(dim=1) for level in h)], dim=1)
        return (self.direct(damage) + self.regress(pooled)).squeeze(1), h


def norms(embeddings: torch.Tensor) -> torch.Tensor:
    """1-norms of non-negative embeddings [..., channels] → [...]."""
    return embeddings.sum(dim=-1)
