"""Graphs of further denoisers: against what really changes, and against what is known of their wiring."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tests.denoisers.small import SMALL, flux, hunyuan, sd3, sdxl
from tests.denoisers.test_trace import changed, layer_inputs
from torch.utils._pytree import tree_map

from qua2sedimo.denoisers import Graph, trace


def modules_reached(graph: Graph, module: str) -> set[str]:
    """Modules downstream of any part of ``module`` along the edges, itself left out."""
    reached = {graph.index[name] for name, unit in graph.layers.items() if unit.module == module}
    for i, node in enumerate(graph.nodes):
        if reached & set(node.inputs):
            reached.add(i)
    return {graph.layers[graph.nodes[i].name].module for i in reached if graph.nodes[i].kind == "layer"} - {module}


def layers_behind(graph: Graph, unit: str) -> set[str]:
    """The layers that a unit's input is combined of, not looking through layers."""
    found, stack = set(), list(graph.nodes[graph.index[unit]].inputs)
    while stack:
        node = graph.nodes[stack.pop()]
        if node.kind == "layer":
            found.add(node.name)
        else:
            stack += node.inputs
    return found


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("parts", [False, True])
def test_what_lies_downstream_of_a_layer_is_exactly_what_reads_something_else_when_it_is_disturbed(
    kind: str, parts: bool
) -> None:
    model, call = SMALL[kind]()
    graph = trace(model, (), call, parts=parts)
    before = layer_inputs(model, call)
    assert all(source < i for source, i in graph.edges)
    for module in {unit.module for unit in graph.layers.values()}:
        truly = changed(before, layer_inputs(model, call, module)) - {module, *graph.bypassed}
        assert modules_reached(graph, module) == truly, module


@pytest.mark.parametrize("kind", SMALL)
def test_an_input_is_seen_by_exactly_the_layers_that_read_something_else_when_it_changes(kind: str) -> None:
    model, call = SMALL[kind]()
    graph = trace(model, (), call)
    before = layer_inputs(model, call)
    for name, value in call.items():
        if torch.is_tensor(value) and value.is_floating_point() and "mask" not in name and "ids" not in name:
            truly = changed(before, layer_inputs(model, {**call, name: value + torch.rand_like(value)}))
            seen = {n.name for n in graph.nodes if n.kind == "layer" and name in n.sees}
            assert seen == truly - set(graph.bypassed), name


@pytest.mark.parametrize("kind", SMALL)
def test_the_graph_needs_no_weights(kind: str) -> None:
    model, call = SMALL[kind]()
    real = trace(model, (), call, parts=True)
    absent = trace(deepcopy(model).to("meta"), (), tree_map(lambda x: x, call), parts=True)
    assert trace(model, (), call, parts=True, compute=False).nodes == real.nodes
    assert absent.nodes == real.nodes and absent.layers == real.layers and absent.bypassed == real.bypassed


def test_hunyuans_later_blocks_read_the_earlier_ones_mirrored_each_through_a_part_of_its_own() -> None:
    model, call = hunyuan()
    graph = trace(model, (), call, parts=True)
    blocks = len(model.blocks)
    skips = sorted({u.module for u in graph.layers.values() if u.module.endswith("skip_linear")})
    assert skips == [f"blocks.{i}.skip_linear" for i in range(blocks // 2 + 1, blocks)]
    for i in range(blocks // 2 + 1, blocks):
        before, skipped = (layers_behind(graph, f"blocks.{i}.skip_linear[{a}:{a + 32}]") for a in (0, 32))
        assert f"blocks.{i - 1}.ff.net.2" in before
        mirror = blocks - 1 - i
        assert f"blocks.{mirror}.ff.net.2" in skipped
        assert not any(f"blocks.{later}." in name for name in skipped for later in range(mirror + 1, blocks))


def test_hunyuans_pooler_projections_are_read_by_a_fused_call_and_left_alone() -> None:
    model, call = hunyuan()
    pooler = "time_extra_emb.pooler"
    assert set(trace(model, (), call).bypassed) == {f"{pooler}.{x}_proj" for x in ("q", "k", "v", "c")}


def test_text_queries_whose_rows_are_thrown_away_are_left_alone() -> None:
    model, call = sd3()
    assert trace(model, (), call).bypassed == ("transformer_blocks.1.attn.add_q_proj",)


def test_fluxs_single_blocks_read_attention_and_feed_forward_side_by_side() -> None:
    model, call = flux()
    graph = trace(model, (), call, parts=True)
    for i in range(2):
        out = f"single_transformer_blocks.{i}.proj_out"
        assert layers_behind(graph, f"{out}[0:32]") == {f"single_transformer_blocks.{i}.attn.to_{x}" for x in "qkv"}
        assert layers_behind(graph, f"{out}[32:160]") == {f"single_transformer_blocks.{i}.proj_mlp"}
    assert {u.module for u in graph.layers.values() if u.span} == {
        f"single_transformer_blocks.{i}.proj_out" for i in (0, 1)
    }


def test_sdxls_micro_conditions_are_parts_of_the_layer_that_reads_both() -> None:
    model, call = sdxl()
    graph = trace(model, (), call, parts=True)
    sees = {node.name: node.sees for node in graph.nodes}
    assert sees["add_embedding.linear_1[0:12]"] == ("added_cond_kwargs.text_embeds",)
    assert sees["add_embedding.linear_1[12:60]"] == ("added_cond_kwargs.time_ids",)
