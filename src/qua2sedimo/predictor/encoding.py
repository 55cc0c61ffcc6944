"""Configurations as node features: one function for training and for scoring."""

from __future__ import annotations

import numpy as np
import torch

from qua2sedimo.bank import Bank
from qua2sedimo.damage import option_features
from qua2sedimo.denoisers import Graph
from qua2sedimo.denoisers.graph import COMBINES
from qua2sedimo.options import SearchSpace


class Encoding:
    """Features of every option of every layer, and of the combine nodes, for one graph and search space.

    A layer's features are those of the damage model (column 0 is ln of the relative MSE, centred; column 1 is 1 for a
    layer and 0 for a combine node), then the node's kind, one-hot. The last column is the number of the option among
    all options of all layers, padding counted: one-hot it would be wider than everything else.

    Attributes:
        damage: the features and the prior of the damage model.
        edges: int64 [2, edges], source above target, nodes numbered as in the graph.
        layer_nodes: int64 [layers], node of each layer in search-space order.
        offered: bool [layers, options], which places of the padded options are real.
        features: number of features of a node; places: of options of all layers, padding counted.
    """

    def __init__(self, graph: Graph, space: SearchSpace, bank: Bank) -> None:
        self.space, self.damage = space, option_features(graph, space, bank)
        self.layer_nodes = torch.tensor([graph.index[layer] for layer in space.layers])
        self.edges = torch.tensor(graph.edges, dtype=torch.int64).reshape(-1, 2).T.contiguous()
        self.nodes = len(graph.nodes)
        self.offered = torch.tensor(self.damage.offered)
        self.places = self.damage.offered.size

        values = self.damage.values
        kinds = np.zeros((self.nodes, len(COMBINES) + 1))
        for i, node in enumerate(graph.nodes):
            kinds[i, COMBINES.index(node.kind) if node.kind in COMBINES else len(COMBINES)] = 1
        of_layers = np.broadcast_to(kinds[self.layer_nodes.numpy()][:, None], (*values.shape[:2], kinds.shape[1]))
        number = np.arange(self.places, dtype=float).reshape(*values.shape[:2], 1)
        self._options = torch.tensor(np.concatenate([values, of_layers, number], axis=2)).float()
        self.features = self._options.shape[2]
        nothing = np.zeros((self.nodes, values.shape[2]))
        self._combines = torch.tensor(np.concatenate([nothing, kinds, np.zeros((self.nodes, 1))], axis=1)).float()

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
