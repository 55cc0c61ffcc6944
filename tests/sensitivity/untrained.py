"""Graphs with a search space, made-up errors and untrained folds: enough to compare embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from qua2sedimo.denoisers import Graph
from qua2sedimo.options import SearchSpace
from qua2sedimo.predictor import Encoding, Ensemble, HopNetwork
from qua2sedimo.predictor.ensemble import Fold

#: Damage of these layers of the small DiT counts a hundredfold.
SENSITIVE = {
    "transformer_blocks.0.attn1.to_k": 100.0,
    "transformer_blocks.1.attn1.to_q": 100.0,
    "transformer_blocks.1.ff.net.2": 100.0,
}


@dataclass(frozen=True)
class Untrained:
    graph: Graph
    space: SearchSpace
    encoding: Encoding
    ensemble: Ensemble


def untrained(
    graph: Graph, options: str = "paper", folds: int = 2, channels: int = 4, hops: int = 4, leave_out: str = "nothing"
) -> Untrained:
    """Folds with random parameters over errors that fall with the bits, different for every layer."""
    shapes = {name: layer.shape for name, layer in graph.layers.items() if leave_out not in name}
    space = SearchSpace.of(shapes, options)
    chance = np.random.default_rng(0)
    errors = {
        name: {o: SimpleNamespace(relative=4.0**-o.bits * chance.uniform(0.5, 2)) for o in space.options[name]}
        for name in space.layers
    }
    bank: Any = SimpleNamespace(errors=errors, costs=lambda: None)
    encoding = Encoding(graph, space, bank)
    roots = [encoding.layer_nodes.tolist()] * (hops + 1)
    made = [
        Fold(_network(encoding, channels, hops, k), 0.0, 1.0, [0.9 - 0.1 * k] * (hops + 1), [], [], roots)
        for k in range(folds)
    ]
    return Untrained(graph, space, encoding, Ensemble(made))


def _network(encoding: Encoding, channels: int, hops: int, seed: int) -> HopNetwork:
    chance = torch.Generator().manual_seed(seed)
    network = HopNetwork(encoding.features, encoding.places, channels, hops).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance))
    return network.requires_grad_(False)
