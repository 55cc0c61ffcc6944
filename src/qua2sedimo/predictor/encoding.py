"""Configurations as node features: one function for training and for scoring."""

from __future__ import annotations

import math

import numpy as np
import torch

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import Graph
from qua2sedimo.denoisers.graph import COMBINES
from qua2sedimo.options import SearchSpace
from qua2sedimo.quantizers import METHODS

_SMALLEST_ERROR = 1e-9  # an exact option would have ln 0
_POWER, _DEVIATION = 1.2, 1.2


class Encoding:
    """Features of every option of every layer, and of the combine nodes, for one graph and search space.

    Column 0 is ln of the relative MSE, centred; column 1 tells that the node has an error (a layer) or not (a combine
    node). Then, standardised over all options of all layers: bits, average bits, log weights,
    depth; and one-hot: method, operation type, block, the layer itself, node kind. The last column is the number of the
    option among all of all layers, padding counted: one-hot it would be wider than everything else.

    Attributes:
        edges: int64 [2, edges], source above target, nodes numbered as in the graph.
        layer_nodes: int64 [layers], node of each layer in search-space order.
        offered: bool [layers, options], which places of the padded options are real.
        features: number of features of a node; places: of options of all layers, padding counted.
        groups: columns of operations, blocks, layers and node kinds.
        prior: (mean, standard deviation) [features − 1] of what a feature adds to the logarithm of an option's damage,
            before anything was measured: the level is free, damage grows with the error at a power a little above one,
            operations, blocks and layers differ by factors of about e^1.2, methods of equal error by e^0.4. The last
            column has a prior of its own, see :func:`qua2sedimo.predictor.damage.fit_damage`.
    """

    def __init__(self, graph: Graph, space: SearchSpace, bank: Bank) -> None:
        self.space = space
        self.layer_nodes = torch.tensor([graph.index[layer] for layer in space.layers])
        self.edges = torch.tensor(graph.edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        self.nodes = len(graph.nodes)
        layers = [graph.layers[name] for name in space.layers]
        most = max(len(options) for options in space.options.values())

        error = np.zeros((len(layers), most))
        continuous = np.zeros((len(layers), most, 4))
        method = np.zeros((len(layers), most, len(METHODS)))
        offered = np.zeros((len(layers), most), dtype=bool)
        for i, layer in enumerate(layers):
            depth = graph.index[layer.name] / len(graph.nodes)
            for j, option in enumerate(space.options[layer.name]):
                offered[i, j] = True
                error[i, j] = math.log(bank.errors[layer.name][option].relative_mse + _SMALLEST_ERROR)
                bits = 8 * option.nbytes(layer.shape) / layer.weights
                continuous[i, j] = option.bits, bits, math.log(layer.weights), depth
                method[i, j, list(METHODS).index(option.method)] = 1
        error -= error[offered].mean()
        mean, deviation = continuous[offered].mean(axis=0), continuous[offered].std(axis=0)
        continuous = (continuous - mean) / np.where(deviation > 0, deviation, 1)

        places = [_one_hot([getattr(layer, what) for layer in layers]) for what in ("operation", "block", "name")]
        kinds = np.zeros((self.nodes, len(COMBINES) + 1))
        for i, node in enumerate(graph.nodes):
            kinds[i, COMBINES.index(node.kind) if node.kind in COMBINES else len(COMBINES)] = 1
        per_layer = np.concatenate([*places, kinds[self.layer_nodes.numpy()]], axis=1)[:, None]
        per_layer = np.broadcast_to(per_layer, (len(layers), most, per_layer.shape[2]))
        number = np.arange(error.size, dtype=float).reshape(*error.shape, 1)
        options = [error[..., None], np.ones_like(error)[..., None], continuous, method, per_layer, number]
        self._options = torch.tensor(np.concatenate(options, axis=2)).float()
        self.features, self.places = self._options.shape[2], error.size
        nothing = np.zeros((self.nodes, self.features - kinds.shape[1] - 1))
        self._combines = torch.tensor(np.concatenate([nothing, kinds, np.zeros((self.nodes, 1))], axis=1)).float()
        self.offered = torch.tensor(offered)
        self.prior = np.zeros(self.features - 1), np.full(self.features - 1, _DEVIATION)
        self.groups = slice(6 + len(METHODS), self.features - 1)
        self.prior[0][0] = _POWER
        self.prior[1][:6], self.prior[1][6 : 6 + len(METHODS)] = (0.7, 5.0, 0.02, 0.02, 0.6, 0.6), 0.4

    def options(self) -> torch.Tensor:
        """Features of every option of every layer: [layers, options, features], padded where not offered."""
        return self._options

    def place(self, options: torch.Tensor, nodes: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
        """Values of every option [layers, options, c] and of the nodes that are no layers [nodes, c], put where
        ``choices`` [configurations, layers] says: [configurations, nodes, c].

        What does not depend on the rest of a configuration is computed once an option, not once a configuration.
        """
        rows = torch.arange(choices.shape[1]) * options.shape[1] + choices
        chosen = options.reshape(-1, options.shape[2]).index_select(0, rows.reshape(-1)).view(*choices.shape, -1)
        order = torch.full((self.nodes,), -1)
        order[self.layer_nodes] = torch.arange(choices.shape[1])
        others = torch.nonzero(order < 0).flatten()
        order[others] = torch.arange(len(others)) + choices.shape[1]
        both = torch.cat([chosen, nodes[others].expand(len(choices), -1, -1)], dim=1)
        return both.index_select(1, order)

    def combines(self) -> torch.Tensor:
        """Features of the nodes that are no layers (of layers, zeros): [nodes, features]."""
        return self._combines

    def __call__(self, choices: torch.Tensor) -> torch.Tensor:
        """Option indices [configurations, layers] → node features [configurations, nodes, features]."""
        x = self._combines.expand(choices.shape[0], -1, -1).clone()
        x[:, self.layer_nodes] = self._options[torch.arange(choices.shape[1]), choices]
        return x


def _one_hot(names: list[str]) -> np.ndarray:
    """[names, distinct names], in order of first appearance."""
    distinct = list(dict.fromkeys(names))
    return np.array([[name == other for other in distinct] for name in names], dtype=np.float64)
