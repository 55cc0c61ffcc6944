"""Configurations as node features: the same function for training and for scoring."""

from __future__ import annotations

import numpy as np
import torch
from tests.conftest import Task

from qua2sedimo.predictor import Encoding


def test_a_layer_is_encoded_alike_in_a_configuration_and_for_scoring(task: Task) -> None:
    choices = task.choices(4)
    x = task.encoding(torch.tensor(choices))
    assert x.shape == (4, len(task.graph.nodes), task.encoding.features)
    options = task.encoding.options()
    for row, choice in zip(x, choices, strict=True):
        for i, j in enumerate(choice):
            assert torch.equal(row[task.encoding.layer_nodes[i]], options[i, j])


def test_nodes_that_are_no_layers_do_not_depend_on_the_configuration(task: Task) -> None:
    x = task.encoding(torch.tensor(task.choices(3)))
    layers = set(task.encoding.layer_nodes.tolist())
    others = [i for i in range(x.shape[1]) if i not in layers]
    assert others and torch.equal(x[0, others], x[1, others]) and torch.equal(x[0, others], x[2, others])


def test_combine_nodes_of_different_kinds_and_layers_are_told_apart(task: Task) -> None:
    x = task.encoding(torch.tensor(task.choices(1)))[0]
    rows = {node.kind: x[i] for i, node in enumerate(task.graph.nodes)}
    kinds = list(rows)
    assert len(kinds) >= 4
    for i, a in enumerate(kinds):
        for b in kinds[i + 1 :]:
            assert not torch.equal(rows[a], rows[b]), (a, b)


def test_every_option_of_every_layer_has_features_of_its_own(task: Task) -> None:
    rows = task.encoding.options()[task.encoding.offered]
    assert rows.shape[0] == sum(map(len, task.space.options.values()))
    assert len(rows.unique(dim=0)) == rows.shape[0]
    assert torch.isfinite(rows).all() and rows[:, :-1].abs().max() < 20


def test_edges_are_those_of_the_graph_and_layers_stand_on_their_nodes(task: Task) -> None:
    assert task.encoding.edges.T.tolist() == [list(edge) for edge in task.graph.edges]
    names = [task.graph.nodes[int(i)].name for i in task.encoding.layer_nodes]
    assert names == list(task.space.layers)


def test_encoding_is_a_function_of_its_arguments(task: Task) -> None:
    again = Encoding(task.graph, task.space, task.bank)
    assert torch.equal(again.options(), task.encoding.options())


def test_a_larger_error_moves_the_features_the_same_way_for_every_layer(task: Task) -> None:
    """Some feature orders the options of each layer by their measured error."""
    options = task.encoding.options().numpy()
    errors = [[task.bank.errors[n][o].relative_mse for o in task.space.options[n]] for n in task.space.layers]
    columns = set(range(options.shape[2]))
    for i, row in enumerate(errors):
        order = np.argsort(row)
        columns &= {c for c in columns if (np.diff(options[i, order, c]) > 0).all()}
    assert columns
