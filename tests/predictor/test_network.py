"""The graph network: its attention is GATv2, and it sees a graph, not an order of nodes."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import Task

from qua2sedimo.predictor import GATv2, HopNetwork
from qua2sedimo.predictor.network import norms


def random_graph(nodes: int, seed: int) -> torch.Tensor:
    """Edges [2, e] of a random acyclic graph in which some nodes have no input."""
    chance = torch.Generator().manual_seed(seed)
    pairs = [(s, t) for t in range(nodes) for s in range(t) if torch.rand(1, generator=chance) < 0.3]
    return torch.tensor(pairs).T


@pytest.mark.parametrize("seed", range(3))
def test_gatv2_computes_what_torch_geometric_does_with_the_same_weights(seed: int) -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(seed)
    ours, channels, nodes = GATv2(8), 8, 12
    theirs = geometric.GATv2Conv(channels, channels, heads=1, share_weights=False, add_self_loops=True)
    torch.nn.init.normal_(ours.bias)
    with torch.no_grad():
        theirs.lin_l.weight.copy_(ours.source.weight)
        theirs.lin_l.bias.copy_(ours.source.bias)
        theirs.lin_r.weight.copy_(ours.target.weight)
        theirs.lin_r.bias.copy_(ours.target.bias)
        theirs.att.copy_(ours.attention.view(1, 1, -1))
        theirs.bias.copy_(ours.bias)
    x, edges = 3 * torch.randn(4, nodes, channels), random_graph(nodes, seed)
    found = ours(x.transpose(0, 1), edges).transpose(0, 1)
    for row, expected in zip(found, x, strict=True):
        torch.testing.assert_close(row, theirs(expected, edges), rtol=1e-4, atol=1e-5)


def test_attention_survives_huge_logits() -> None:
    torch.manual_seed(0)
    layer = GATv2(4)
    out = layer(1e4 * torch.randn(5, 1, 4), torch.tensor([[0, 1, 2], [4, 4, 3]]))
    assert torch.isfinite(out).all()


def test_gradients_of_the_attention_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    layer = GATv2(3).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: layer(v, random_graph(5, 1)), (x,))


@pytest.fixture
def network(task: Task) -> HopNetwork:
    torch.manual_seed(0)
    made = HopNetwork(task.encoding.features, task.encoding.places, channels=8, hops=3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def test_the_order_of_nodes_does_not_matter(task: Task, network: HopNetwork) -> None:
    x, edges = task.encoding(torch.tensor(task.choices(3))), task.encoding.edges
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    predicted, hops = network(x, edges)
    moved, moved_hops = network(x[:, order], place[edges])
    torch.testing.assert_close(moved, predicted, rtol=1e-4, atol=1e-5)
    for h, other in zip(hops, moved_hops, strict=True):
        torch.testing.assert_close(other, h[:, order], rtol=1e-4, atol=1e-5)


def test_a_configuration_gets_the_same_prediction_alone_and_in_a_batch(task: Task, network: HopNetwork) -> None:
    x, edges = task.encoding(torch.tensor(task.choices(5))), task.encoding.edges
    predicted, hops = network(x, edges)
    assert len(predicted.unique()) == 5
    for i in range(5):
        alone, alone_hops = network(x[i : i + 1], edges)
        torch.testing.assert_close(alone, predicted[i : i + 1], rtol=1e-4, atol=1e-5)
        for h, other in zip(hops, alone_hops, strict=True):
            torch.testing.assert_close(other[0], h[i], rtol=1e-4, atol=1e-5)


def test_embeddings_are_non_negative_so_that_norms_of_means_are_means_of_norms(task: Task, network: HopNetwork) -> None:
    _, hops = network(task.encoding(torch.tensor(task.choices(4))), task.encoding.edges)
    assert len(hops) == 4
    for h in hops:
        assert (h >= 0).all()
        torch.testing.assert_close(h.mean(dim=1).abs().sum(-1), norms(h).mean(dim=1), rtol=1e-4, atol=1e-4)


def test_hop_m_sees_exactly_m_edges_back(task: Task, network: HopNetwork) -> None:
    """Changing one layer's option moves the embeddings at hop m of the nodes at most m edges onward, no others."""
    encoding, graph = task.encoding, task.graph
    layer = task.space.layers.index("transformer_blocks.0.attn1.to_v")
    choices = torch.tensor(task.choices(1).repeat(2, axis=0))
    choices[1, layer] = (choices[0, layer] + 1) % len(task.space.options[task.space.layers[layer]])
    _, hops = network(encoding(choices), encoding.edges)
    changed = int(encoding.layer_nodes[layer])
    for m, h in enumerate(hops):
        differs = {i for i in range(h.shape[1]) if not torch.allclose(h[0, i], h[1, i], atol=1e-7)}
        onward = {i for i in range(h.shape[1]) if changed in graph.reaching([i], m)}
        assert differs <= onward
        assert changed in differs
        if m:
            assert differs - {changed}
