"""The graph network: embedding of options by their damage, GATv2 hops, and a readout of all hops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

_SMALLEST = 1e-12


class GATv2(nn.Module):
    """Graph attention v2 (arXiv 2105.14491) over one graph and many configurations at once.

    e_ij = aᵀ LeakyReLU(W_r x_i + W_l x_j), α = softmax over the sources j of i (itself included), and
    x_i' = Σ_j α_ij W_l x_j + bias. Topology is shared, so a batch is a dense
    tensor, nodes first: what is gathered and summed are whole rows. W_l starts near the identity and
    α near equal shares: a node begins by hearing the mean of its sources.

    Args:
        channels: input and output width.
    Shapes:
        x: [nodes, batch, channels]; edges: int64 [2, edges], source above target → [nodes, batch, channels].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.attention = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.normal_(self.attention, std=channels**-0.5)
        nn.init.normal_(self.source.weight, std=0.1 * channels**-0.5)
        nn.init.zeros_(self.source.bias)
        with torch.no_grad():
            self.source.weight += torch.eye(channels)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """[nodes, batch, channels] after one hop over ``edges``, int64 [2, edges]; each node hears itself too."""
        nodes = torch.arange(x.shape[0], device=x.device)
        source, target = torch.cat([edges[0], nodes]), torch.cat([edges[1], nodes])
        sent, received = self.source(x), self.target(x)
        messages = sent.index_select(0, source)
        logits = functional.leaky_relu(messages + received.index_select(0, target), 0.2) @ self.attention
        peak = torch.full(x.shape[:2], -torch.inf, device=x.device, dtype=x.dtype)
        peak = peak.scatter_reduce(0, target[:, None].expand_as(logits), logits.detach(), "amax")
        weight = (logits - peak.index_select(0, target)).exp()  # [edges, batch]
        total = torch.zeros_like(peak).index_add(0, target, weight)
        share = weight / total.index_select(0, target)
        return torch.zeros_like(sent).index_add(0, target, messages * share[..., None]) + self.bias


class OptionEmbedding(nn.Module):
    """h⁰ = max(0, 1 − d) · softmax(u(x)), d = exp(w·x + v_n): a node's norm falls in proportion to its damage d.

    To first order the images' squared error is a sum over layers of sensitivity × error of the weights, so the sum of
    these norms orders configurations as the additive model does, and differences of norms are comparable across
    layers. v_n is the option's own: errors of one size do not all do the same damage. softmax(u) tells kinds of nodes
    apart without changing the norm. Nodes without an error have d = 0.

    Args:
        features: columns of x; places: options of all layers, padding counted; channels: width of the embedding.
    Shapes:
        x: [..., features] with ln e, centred, in column 0, in column 1 whether the node has an error, and n, the number
        of the option among all, in the last.
    """

    _LEVEL = -4.0

    def __init__(self, features: int, places: int, channels: int) -> None:
        super().__init__()
        self.log_damage = nn.Linear(features - 1, 1, bias=False)
        self.own = nn.Parameter(torch.zeros(places))
        self.kind = nn.Linear(features - 2, channels)
        nn.init.normal_(self.kind.weight, std=0.3)
        nn.init.zeros_(self.log_damage.weight)
        with torch.no_grad():
            self.log_damage.weight[0, 0], self.log_damage.weight[0, 1] = 1.0, self._LEVEL

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(d [..., 1], softmax(u) [..., channels])."""
        logarithm = self.log_damage(x[..., :-1]) + self.own[x[..., -1:].long()]
        damage = logarithm.clamp(max=8).exp() * x[..., 1:2]
        return damage, torch.softmax(self.kind(x[..., 1:-1]), dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        damage, kind = self.parts(x)
        return functional.relu(1 - damage) * kind


class HopNetwork(nn.Module):
    """h⁰ = embed(x); hᵐ = relu(hᵐ⁻¹ + GATv2(hᵐ⁻¹)); ŷ = offset − slope·s(ln Σ d) + MLP(ln Σ d·softmax(u), means of hᵐ).

    s(t) = t − softplus(t − limit): a ruined picture gets no worse. Every embedding is non-negative, so that the 1-norm
    of a mean of embeddings is the mean of their 1-norms: the norm at hop m splits into the contributions of its roots.
    The MLP starts at zero: ŷ begins as the additive model and learns what that leaves over.
    """

    def __init__(self, features: int, places: int, channels: int = 16, hops: int = 4) -> None:
        super().__init__()
        self.embed = OptionEmbedding(features, places, channels)
        self.hops = nn.ModuleList(GATv2(channels) for _ in range(hops))
        width = (hops + 2) * channels
        self.standardise = nn.BatchNorm1d(width, affine=False)
        last = nn.Linear(channels, 1)
        self.regress = nn.Sequential(nn.Linear(width, channels), nn.SiLU(), last)
        self.offset, self.slope = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(0.2))
        self.limit = nn.Parameter(torch.tensor(20.0))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, x: torch.Tensor, edges: torch.Tensor, roots: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """x [batch, nodes, features] → (ŷ [batch], embeddings at hops 0 … M, each [batch, nodes, channels]).

        ``roots`` are the nodes that the readout pools at each hop, all of them if not given.
        """
        damage, kind = self.embed.parts(x)
        h = self.propagate(functional.relu(1 - damage) * kind, edges)
        return self.additive(damage) + self.left_over(damage, kind, pooled(h, roots)), h

    def additive(self, damage: torch.Tensor) -> torch.Tensor:
        """offset − slope · s(ln Σ d) of damages [batch, nodes, 1]: [batch]."""
        total = torch.log(damage.sum(dim=(1, 2)) + _SMALLEST)
        return self.offset - self.slope * (total - functional.softplus(total - self.limit))

    def left_over(self, damage: torch.Tensor, kind: torch.Tensor, means: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the sum of damages does not say, from damages by kind and the pooled hops [batch, channels]: [batch]."""
        groups = torch.log((damage * kind).sum(dim=1) + _SMALLEST)
        return self.regress(self.standardise(torch.cat([groups, *means], dim=1))).squeeze(1)

    def propagate(self, h: torch.Tensor, edges: torch.Tensor, hops: int | None = None) -> list[torch.Tensor]:
        """h⁰ [batch, nodes, channels] → [h⁰, …, hᵐ], m = ``hops``, all of them if not given.

        Of a subgraph alone, a node's embeddings equal those inside the whole graph if the subgraph holds all its
        ancestors up to ``hops`` edges away and all edges between them; ``edges`` are then numbered within it.
        """
        levels = [h.transpose(0, 1).contiguous()]
        for hop in list(self.hops)[:hops]:
            levels.append(functional.relu(levels[-1] + hop(levels[-1], edges)))
        return [level.transpose(0, 1) for level in levels]


def pooled(levels: Sequence[torch.Tensor], roots: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """h_G^m: the mean embedding of the roots at each hop (of all nodes if none are given): [batch, channels] each."""
    chosen = levels if roots is None else [h.index_select(1, r) for h, r in zip(levels, roots, strict=True)]
    return [h.mean(dim=1) for h in chosen]


def norms(embeddings: torch.Tensor) -> torch.Tensor:
    """1-norms of non-negative embeddings [..., channels] → [...]."""
    return embeddings.sum(dim=-1)
