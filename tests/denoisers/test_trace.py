"""The traced graph, checked against an independent method: what really changes when a layer's output does."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.conftest import MAKERS, call_of, small_dit, small_pixart, small_unet
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map

from qua2sedimo.denoisers import Graph, trace, weight_modules
from qua2sedimo.errors import Qua2SeDiMoError


def traced(model: nn.Module) -> Graph:
    return trace(model, (), call_of(model))


def descendants(graph: Graph, layer: str) -> set[str]:
    """Layers downstream of ``layer`` along the graph's edges."""
    reached = {graph.index[layer]}
    for i, node in enumerate(graph.nodes):  # in topological order
        if reached & set(node.inputs):
            reached.add(i)
    return {graph.nodes[i].name for i in reached if graph.nodes[i].kind == "layer"} - {layer}


def layer_inputs(model: nn.Module, call: dict[str, Any], disturbed: str | None = None) -> dict[str, list[torch.Tensor]]:
    """What every layer reads in a forward pass, the output of ``disturbed`` being blurred by noise."""
    read: dict[str, list[torch.Tensor]] = {}
    hooks = []
    chance = torch.Generator().manual_seed(11)
    for name, module in weight_modules(model).items():

        def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            read.setdefault(name, []).extend(t.clone() for t in tree_leaves((args, kwargs)) if torch.is_tensor(t))

        hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
        if name == disturbed:
            hooks.append(module.register_forward_hook(lambda m, a, out: out + torch.randn(out.shape, generator=chance)))
    try:
        with torch.no_grad():
            model(**call)
    finally:
        for hook in hooks:
            hook.remove()
    return read


def changed(before: dict[str, list[torch.Tensor]], after: dict[str, list[torch.Tensor]]) -> set[str]:
    return {n for n in before if not all(torch.equal(a, b) for a, b in zip(before[n], after[n], strict=True))}


def test_edges_go_forward_and_every_layer_appears_once_and_reaches_the_output(denoiser: nn.Module) -> None:
    graph = traced(denoiser)
    assert all(source < i for i, node in enumerate(graph.nodes) for source in node.inputs)
    names = [node.name for node in graph.nodes if node.kind == "layer"]
    assert sorted(names) == sorted(set(names)) == sorted(weight_modules(denoiser))
    assert graph.bypassed == ()
    assert list(graph.layers) == list(weight_modules(denoiser))
    readers = {source for source, _ in graph.edges}
    (end,) = set(range(len(graph.nodes))) - readers
    assert graph.reaching([end], len(graph.nodes)) == set(range(len(graph.nodes)))


def test_descendants_are_exactly_the_layers_whose_inputs_change_when_a_layer_is_disturbed(
    denoiser: nn.Module,
) -> None:
    graph, call = traced(denoiser), call_of(denoiser)
    before = layer_inputs(denoiser, call)
    for layer in graph.layers:
        truly = changed(before, layer_inputs(denoiser, call, layer)) - {layer}
        assert descendants(graph, layer) == truly, layer


def test_an_input_is_seen_by_exactly_the_layers_that_read_something_else_when_it_changes(denoiser: nn.Module) -> None:
    graph, call = traced(denoiser), call_of(denoiser)
    before = layer_inputs(denoiser, call)
    for name, value in call.items():
        if not torch.is_tensor(value):
            continue
        other = value + 1 if not value.is_floating_point() else value + torch.randn_like(value)
        truly = changed(before, layer_inputs(denoiser, {**call, name: other}))
        assert {n.name for n in graph.nodes if n.kind == "layer" and name in n.sees} == truly, name


def test_time_layers_do_not_see_the_latent_and_cross_keys_and_values_see_the_text_only() -> None:
    for model, latent in ((small_pixart(), "hidden_states"), (small_unet(), "sample")):
        graph = traced(model)
        sees = {node.name: node.sees for node in graph.nodes}
        time = [x.name for x in graph.layers.values() if x.operation == "t-Embed"]
        text = [x.name for x in graph.layers.values() if x.operation in ("CA-K", "CA-V")]
        assert time and text
        assert all(sees[name] == ("timestep",) for name in time)
        assert all(sees[name] == ("encoder_hidden_states",) for name in text)
        assert all(latent in sees[x.name] for x in graph.layers.values() if x.operation.startswith("SA-"))


def test_gates_of_the_modulation_multiply_into_the_residual_stream() -> None:
    graph = traced(small_pixart())
    adaln = graph.index["adaln_single.linear"]
    readers = [graph.nodes[i] for source, i in graph.edges if source == adaln]
    multiplied = [node for node in readers if node.kind == "multiply"]
    modulated = [node for node in readers if node.kind == "modulate"]
    assert len(multiplied) == 4  # attention and feed-forward of two blocks
    assert len(modulated) == 4
    gated = {graph.nodes[s].name for node in multiplied for s in node.inputs if s != adaln}
    assert gated == {f"transformer_blocks.{b}.{end}" for b in (0, 1) for end in ("attn1.to_out.0", "ff.net.2")}
    index = {node.name: i for i, node in enumerate(graph.nodes)}
    for node in multiplied:
        onward = [graph.nodes[i].kind for source, i in graph.edges if source == index[node.name]]
        assert onward == ["add"]


def test_attention_is_a_product_of_query_and_key_then_of_that_and_value() -> None:
    graph = traced(small_unet())
    head = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    query, key, value, out = (graph.index[f"{head}.{x}"] for x in ("to_q", "to_k", "to_v", "to_out.0"))
    (mixed,) = graph.nodes[out].inputs
    assert graph.nodes[mixed].kind == "product"
    (scores,) = set(graph.nodes[mixed].inputs) - {value}
    assert graph.nodes[scores].kind == "product" and graph.nodes[scores].inputs == tuple(sorted((query, key)))


def test_skip_connections_are_concatenations() -> None:
    graph = traced(small_unet())
    for layer in graph.layers:
        if layer.startswith("up_blocks") and layer.endswith("resnets.0.conv_shortcut"):
            (source,) = graph.nodes[graph.index[layer]].inputs
            assert graph.nodes[source].kind == "concat"


def test_the_graph_is_the_same_on_the_meta_device(denoiser: nn.Module) -> None:
    real = traced(denoiser)
    call = tree_map(lambda x: x.to("meta") if torch.is_tensor(x) else x, call_of(denoiser))
    meta = trace(deepcopy(denoiser).to("meta"), (), call)
    assert [(n.kind, n.inputs, n.sees) for n in meta.nodes] == [(n.kind, n.inputs, n.sees) for n in real.nodes]
    assert meta.layers == real.layers


def test_tracing_leaves_training_mode_weights_and_hooks_as_they_were(denoiser: nn.Module) -> None:
    before = {name: t.clone() for name, t in denoiser.state_dict().items()}
    denoiser.train()
    traced(denoiser)
    assert denoiser.training
    assert all(torch.equal(before[name], t) for name, t in denoiser.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in weight_modules(denoiser).values())


class Model(nn.Module):
    """Three layers and a forward given by the test."""

    def __init__(self, run: Callable[[Model, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.run = run

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.run(self, x),)


def edges_of(model: nn.Module) -> tuple[Graph, set[tuple[str, str]]]:
    graph = trace(model, (torch.ones(2, 4),))
    return graph, {(graph.nodes[s].name, graph.nodes[t].name) for s, t in graph.edges}


def test_a_denoiser_that_returns_a_bare_tensor_is_traced() -> None:
    graph = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (torch.ones(2, 4),))
    assert [node.name for node in graph.nodes] == ["0", "2"]


def test_a_layer_called_twice_is_one_node_that_reads_both_inputs_and_closes_no_cycle() -> None:
    graph, _ = edges_of(Model(lambda m, x: m.c(m.a(m.a(x)) + m.b(x))))
    assert [n.name for n in graph.nodes if n.kind == "layer"].count("a") == 1
    assert all(s < t for s, t in graph.edges)
    graph, edges = edges_of(Model(lambda m, x: m.c(m.b(x)) + m.c(m.a(x))))
    assert ("b", "c") in edges
    assert "a" in graph.layers and descendants(graph, "a") <= {"c"}


def test_a_layer_whose_weight_is_read_without_calling_it_is_reported_as_bypassed() -> None:
    graph, edges = edges_of(Model(lambda m, x: m.c(functional.linear(m.a(x), m.b.weight))))
    assert graph.bypassed == ("b",)
    assert "b" not in graph.layers
    assert edges == {("a", "c")}


def test_a_layer_that_does_not_reach_the_output_is_reported_as_bypassed() -> None:
    def run(model: Model, x: torch.Tensor) -> torch.Tensor:
        model.b(x)
        return model.c(model.a(x))

    graph, _ = edges_of(Model(run))
    assert graph.bypassed == ("b",)


def test_a_write_in_place_through_a_view_is_followed() -> None:
    def run(model: Model, x: torch.Tensor) -> torch.Tensor:
        board = torch.zeros(2, 8)
        board[:, :4] = model.a(x)
        board[:, 4:] += model.b(x)
        return model.c(board[:, 2:6])

    graph, _ = edges_of(Model(run))
    assert descendants(graph, "a") == descendants(graph, "b") == {"c"}


def test_a_weight_shared_by_two_modules_is_one_layer() -> None:
    model = Model(lambda m, x: m.c(m.b(m.a(x))))
    model.b.weight = model.a.weight
    assert list(weight_modules(model)) == ["a", "c"]


def test_a_forward_that_fails_names_the_denoiser_and_leaves_no_hook() -> None:
    model = small_dit()
    call = {**call_of(model), "hidden_states": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(Qua2SeDiMoError, match="DiTTransformer2DModel: the forward pass failed while tracing"):
        trace(model, (), call)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in weight_modules(model).values())


def test_a_model_without_weight_layers_is_refused() -> None:
    with pytest.raises(Qua2SeDiMoError, match="no Linear or Conv layers"):
        trace(nn.Sequential(nn.ReLU()), (torch.ones(1),))


def test_every_small_denoiser_is_covered() -> None:
    assert set(MAKERS) == {"dit", "pixart", "unet"}
