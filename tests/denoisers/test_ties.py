"""Layers of the same weights and the same data become one, with the others as copies."""

from __future__ import annotations

import torch
from tests.conftest import call_of, small_dit, small_pixart
from torch import nn

from qua2sedimo.denoisers import trace

EMBEDDER = "transformer_blocks.{}.norm1.emb.timestep_embedder"


def tied_dit() -> nn.Module:
    model = small_dit()
    first, second = (model.get_submodule(EMBEDDER.format(i)) for i in (0, 1))
    second.load_state_dict(first.state_dict())
    return model


def test_a_timestep_mlp_repeated_in_every_block_is_one_unit_with_copies() -> None:
    model = tied_dit()
    separate = trace(model, (), call_of(model))
    graph = trace(model, (), call_of(model), ties=True)
    assert len(graph.layers) == len(separate.layers) - 2
    for end in ("linear_1", "linear_2"):
        assert graph.layers[f"{EMBEDDER.format(0)}.{end}"].copies == (f"{EMBEDDER.format(1)}.{end}",)
        assert f"{EMBEDDER.format(1)}.{end}" not in graph.layers
    assert graph.bypassed == ()
    shared = graph.index[f"{EMBEDDER.format(0)}.linear_2"]
    readers = {graph.nodes[i].name for source, i in graph.edges if source == shared}
    assert readers == {*(f"transformer_blocks.{i}.norm1.linear" for i in (0, 1)), "proj_out_1"}
    assert all(source < i for source, i in graph.edges)


def test_equal_data_with_other_weights_or_another_bias_are_not_tied() -> None:
    model = tied_dit()
    with torch.no_grad():
        model.get_submodule(f"{EMBEDDER.format(1)}.linear_1").bias[0] += 1
    assert not any(layer.copies for layer in trace(model, (), call_of(model), ties=True).layers.values())


def test_equal_weights_that_read_other_data_are_not_tied() -> None:
    model = small_pixart()
    one, other = (model.get_submodule(f"transformer_blocks.{i}.attn1.to_q") for i in (0, 1))
    other.load_state_dict(one.state_dict())
    assert not any(layer.copies for layer in trace(model, (), call_of(model), ties=True).layers.values())


def test_modules_that_share_a_weight_tensor_are_copies_and_both_calls_are_followed() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.c(x)) + self.a(x)

    graph = trace(Shared(), (torch.ones(2, 4),))
    assert graph.layers["a"].copies == ("b",)
    assert ("c", "a") in {(graph.nodes[s].name, graph.nodes[i].name) for s, i in graph.edges}


def test_without_weights_candidates_are_named_and_nothing_is_joined() -> None:
    model = small_dit().to("meta")
    graph = trace(model, (), call_of(small_dit()), ties=True)
    assert [len(group) for group in graph.tied_candidates] == [2, 2]
    assert graph.tied_candidates[0] == tuple(f"{EMBEDDER.format(i)}.linear_1" for i in (0, 1))
    assert len(graph.layers) == len(trace(small_dit(), (), call_of(small_dit())).layers)
