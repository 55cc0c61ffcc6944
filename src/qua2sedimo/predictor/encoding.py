"""Configurations as node features: one function for training and for scoring."""

from __future__ import annotations

import math

import numpy as np
import torch

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import Graph
from qua2sedimo.denoisers.graph import COMBINES
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.quantizers import METHODS


class Encoding:
    """Features of every option of every layer, and of the combine nodes, for one graph and search space.

    Continuous features (bits, average bits, relative MSE, its root and log, log mean |e|^2.4, log weights, depth) are
    standardised over all options of all layers; method, operation type, block and node kind are one-hot.

    Attributes:
        edges: int64 [2, edges], source above target, nodes numbered as in the graph.
        layer_nodes: int64 [layers], node of each layer in search-space order.
        features: number of features of a node.
    """

    def __init__(self, graph: Graph, space: SearchSpace, bank: Bank) -> None:
        self.space = space
        self.layer_nodes = torch.tensor([graph.index[layer] for layer in space.layers])
        self.edges = torch.tensor(graph.edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        self.nodes = len(graph.nodes)
        operations = sorted({layer.operation for layer in graph.layers.values()})
        blocks = list(dict.fromkeys(layer.block for layer in graph.layers.values()))
        most = max(len(options) for options in space.options.values())

        continuous = np.zeros((len(space.layers), most, 8))
        categories = np.zeros((len(space.layers), most, len(METHODS) + len(operations) + len(blocks)))
        offered = np.zeros((len(space.layers), most), dtype=bool)
        for i, name in enumerate(space.layers):
            layer = graph.layers[name]
            for j, option in enumerate(space.options[name]):
                offered[i, j] = True
                depth = graph.index[name] / len(graph.nodes)
                continuous[i, j] = _continuous(option, layer.shape, bank, name, depth)
                categories[i, j, list(METHODS).index(option.method)] = 1
                categories[i, j, len(METHODS) + operations.index(layer.operation)] = 1
                categories[i, j, len(METHODS) + len(operations) + blocks.index(layer.block)] = 1
        mean, deviation = continuous[offered].mean(axis=0), continuous[offered].std(axis=0)
        continuous = (continuous - mean) / np.where(deviation > 0, deviation, 1)

        kinds = np.zeros((self.nodes, len(COMBINES) + 1))
        for i, node in enumerate(graph.nodes):
            kinds[i, COMBINES.index(node.kind) if node.kind in COMBINES else len(COMBINES)] = 1
        width = continuous.shape[2] + categories.shape[2]
        self._combines = torch.tensor(np.concatenate([np.zeros((self.nodes, width)), kinds], axis=1)).float()
        layer_kind = np.broadcast_to(kinds[self.layer_nodes.numpy()][:, None], (*offered.shape, kinds.shape[1]))
        self._options = torch.tensor(np.concatenate([continuous, categories, layer_kind], axis=2)).float()
        self.offered = torch.tensor(offered)
        self.features = int(self._combines.shape[1])

    def options(self) -> torch.Tensor:
        """Features of every option of every layer: [layers, options, features], padded where not offered."""
        return self._options

    def __call__(self, choices: torch.Tensor) -> torch.Tensor:
        """Option indices [configurations, layers] → node features [configurations, nodes, features]."""
        x = self._combines.expand(choices.shape[0], -1, -1).clone()
        x[:, self.layer_nodes] = self._options[torch.arange(choices.shape[1]), choices]
        return x


def _continuous(option: Option, shape: tuple[int, ...], bank: Bank, name: str, depth: float) -> list[float]:
    error = bank.errors[name][option]
    weights = math.prod(shape)
    return [
        option.bits,
        8 * option.nbytes(shape) / weights,
        error.relative_mse,
        error.relative_mse**0.5,
        math.log10(error.relative_mse + 1e-8),
        math.log10(error.loss + 1e-16),
        math.log10(weights),
        depth,
    ]
