"""Blocks that are scored as one, and the node each is scored at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import MAKERS, call_of
from tests.denoisers import small
from tests.denoisers.coverage.check import built
from tests.denoisers.coverage.registry import CONFIGURATIONS, exported
from torch import nn

from qua2sedimo import zoo
from qua2sedimo.denoisers import (
    Graph,
    Node,
    WeightLayer,
    architecture,
    built_inputs,
    capture_call,
    denoiser_of,
    load_pipeline,
    trace,
)
from qua2sedimo.denoisers.subgraphs import Subgraph, subgraphs
from qua2sedimo.images.generate import Generation, Generator

CONFIGS = Path(__file__).parent / "configs"
FULL = (
    "pixart-alpha-512",
    "dit-xl-2-512",
    pytest.param("sdxl-base-1.0", marks=pytest.mark.slow),
    pytest.param("hunyuan-dit-v1", marks=pytest.mark.slow),
)


def zoo_graph(name: str) -> Graph:
    entry = zoo.ENTRIES[name]
    make = Generator(load_pipeline(name, device="cpu"), Generation(entry.inputs, entry.arguments, seed=3))
    denoiser = denoiser_of(make.pipeline)[1]
    call = capture_call(make.pipeline, denoiser, make.call_arguments([0]))
    return trace(denoiser, call.args, call.kwargs, parts=True, ties=True)


def full_graph(name: str) -> Graph:
    model = architecture(CONFIGS / f"{name}.json")
    return trace(model, (), built_inputs(model), parts=True)


def small_graph(name: str) -> Graph:
    if name in MAKERS:
        model: nn.Module = MAKERS[name]()
        call = call_of(model)
    else:
        model, call = getattr(small, name)()
    return trace(model, (), call, parts=True, ties=True)


def check(graph: Graph, blocks: list[Subgraph], max_hops: int = 4) -> None:
    """What holds of any graph: a partition, distinct names, and the nearest root that sees all."""
    placed = Counter(layer for block in blocks for layer in block.layers)
    assert placed == Counter(list(graph.layers))
    assert len({block.name for block in blocks}) == len(blocks)
    for block in blocks:
        nodes = {graph.index[layer] for layer in block.layers}
        assert block.hops <= max_hops
        assert nodes <= graph.reaching([block.root], block.hops)
        if block.hops:
            behind = graph.reaching([block.root], max_hops + 1)
            candidates = behind | {i for i, node in enumerate(graph.nodes) if set(node.inputs) & nodes} | nodes
            assert not any(nodes <= graph.reaching([v], block.hops - 1) for v in candidates), "a nearer root exists"


def shape(graph: Graph, blocks: list[Subgraph]) -> Counter[tuple[str, int, int, str]]:
    """How many blocks there are of each kind, number of layers, hops, and kind of root."""
    return Counter((b.kind, len(b.layers), b.hops, graph.nodes[b.root].kind) for b in blocks)


def published(blocks: int) -> Counter[tuple[str, int, int, str]]:
    """PixArt's blocks and hop counts as in the paper."""
    return Counter({
        ("patch embedding", 1, 0, "layer"): 1,
        ("time embedding", 3, 2, "layer"): 1,
        ("condition embedding", 2, 1, "layer"): 1,
        ("self-attention", 4, 3, "layer"): blocks,
        ("cross-attention q, k", 2, 1, "product"): blocks,
        ("cross-attention v, out", 2, 2, "layer"): blocks,
        ("feed-forward", 2, 1, "layer"): blocks,
        ("output", 1, 0, "layer"): 1,
    })  # fmt: skip


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_blocks_of_every_shipped_model_are_a_partition_with_the_nearest_roots(name: str) -> None:
    graph = zoo_graph(name)
    check(graph, subgraphs(graph))


@pytest.mark.parametrize("name", FULL)
def test_blocks_of_the_papers_denoisers_at_full_size(name: str) -> None:
    graph = full_graph(name)
    blocks = subgraphs(graph)
    check(graph, blocks)
    found = shape(graph, blocks)
    if name == "pixart-alpha-512":
        assert found == published(28)
        assert sum(6 ** len(block.layers) for block in blocks) == 39_576
    elif name == "dit-xl-2-512":
        assert found["time embedding", 3, 2, "layer"] == 28 and found["self-attention", 4, 3, "layer"] == 28
    elif name == "sdxl-base-1.0":  # ResNet blocks without shortcut, with one, and with one in two parts
        resnets = {key[1:]: count for key, count in found.items() if key[0] == "ResNet"}
        assert resnets == {(3, 2, "layer"): 6, (4, 3, "add"): 2, (6, 4, "add"): 9}
    else:
        assert found["skip", 2, 1, "add"] == 19 and found["modulation", 1, 0, "layer"] == 41


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_blocks_of_every_diffusers_class_are_a_partition_with_the_nearest_roots(name: str) -> None:
    if name not in exported():
        pytest.skip(f"this diffusers has no {name}")
    model, inputs = built(name)
    graph = trace(model, (), inputs, parts=True, ties=True)
    check(graph, subgraphs(graph))


def test_the_blocks_of_a_small_pixart_are_those_of_the_paper() -> None:
    graph = small_graph("pixart")
    blocks = subgraphs(graph)
    assert shape(graph, blocks) == published(2)
    found = {b.name: b for b in blocks}
    assert found["adaln_single"].layers == (
        "adaln_single.emb.timestep_embedder.linear_1", "adaln_single.emb.timestep_embedder.linear_2",
        "adaln_single.linear",
    )  # fmt: skip
    assert graph.nodes[found["transformer_blocks.1.attn1"].root].name == "transformer_blocks.1.attn1.to_out.0"
    halves = [b for b in blocks if b.name.startswith("transformer_blocks.0.attn2")]
    assert [b.name.removeprefix("transformer_blocks.0.attn2 ") for b in halves] == ["q, k", "v, out"]
    assert [layer.rsplit("attn2.")[1] for b in halves for layer in b.layers] == ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_joint_attention_is_a_block_for_each_stream(name: str) -> None:
    graph = small_graph(name)
    blocks = subgraphs(graph)
    check(graph, blocks)
    found = {b.name: [layer.rpartition("attn.")[2] for layer in b.layers] for b in blocks}
    assert found["transformer_blocks.0.attn stream 1"] == ["to_q", "to_k", "to_v", "to_out.0"]
    assert found["transformer_blocks.0.attn stream 2"] == ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def test_a_resnet_block_holds_its_time_projection_and_all_parts() -> None:
    graph = small_graph("unet")
    blocks = subgraphs(graph)
    check(graph, blocks)
    (block,) = (b for b in blocks if b.name == "up_blocks.0.resnets.1")
    assert [layer.removeprefix(block.name + ".") for layer in block.layers] == [
        "conv1[0:32]", "conv1[32:48]", "time_emb_proj", "conv2", "conv_shortcut[0:32]", "conv_shortcut[32:48]",
    ]  # fmt: skip
    assert (block.hops, graph.nodes[block.root].kind) == (4, "add")


def test_an_embedder_that_every_block_shares_is_a_block_of_its_own() -> None:
    graph = zoo_graph("digits-dit")
    blocks = [b for b in subgraphs(graph) if b.kind in ("time embedding", "modulation")]
    tied = [b for b in blocks if any(graph.layers[layer].copies for layer in b.layers)]
    assert [len(b.layers) for b in tied] == [2] and len(blocks) > 1


@given(st.integers(1, 4), st.integers(2, 9))
def test_a_chain_that_is_too_long_for_one_root_is_divided(max_hops: int, length: int) -> None:
    """Layers of one ResNet module, each reading the one before."""
    names = [f"resnets.0.conv{i + 1}" for i in range(length)]
    layers = {n: WeightLayer(n, n, None, (4, 4), "Linear", "Res Out", "mid resnet 0", None, "mid") for n in names}
    nodes = tuple(Node(n, "layer", (i - 1,) if i else (), ("x",)) for i, n in enumerate(names))
    graph = Graph("Chain", nodes, layers)
    blocks = subgraphs(graph, max_hops)
    check(graph, blocks, max_hops)
    assert len(blocks) == -(-length // (max_hops + 1))
