"""Layers are cut where the channels they read were joined, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.conftest import call_of, small_unet
from torch import nn
from torch.nn import functional

from qua2sedimo.denoisers import Graph, trace, unit_weight, weight_modules


class Joined(nn.Module):
    """Two linear layers of widths 4 and 6, and a third that reads what the test makes of their outputs."""

    def __init__(self, run: Callable[[Joined, torch.Tensor, torch.Tensor], torch.Tensor], reads: int = 10) -> None:
        super().__init__()
        self.a, self.b, self.time = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(4, 10)
        self.end = nn.Linear(reads, 3)
        self.conv = nn.Conv2d(10, 2, 3, padding=1)
        self.grouped = nn.Conv2d(10, 10, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(10)
        self.run = run

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.run(self, x, t)


def traced(run: Callable[[Joined, torch.Tensor, torch.Tensor], torch.Tensor], reads: int = 10) -> Graph:
    return trace(Joined(run, reads), (torch.randn(2, 5, 4), torch.randn(2, 1, 4)), parts=True)


def inputs(graph: Graph, unit: str) -> set[str]:
    return {graph.nodes[i].name for i in graph.nodes[graph.index[unit]].inputs}


def joined(m: Joined, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([m.a(x), m.b(x)], dim=-1)


WHOLE: dict[str, Callable[[Joined, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "joined along the tokens": lambda m, x, t: m.end(torch.cat([m.time(x), m.time(t)], dim=1)),
    "channels mixed by a softmax": lambda m, x, t: m.end(joined(m, x).softmax(-1)),
    "channels flipped": lambda m, x, t: m.end(joined(m, x).flip(-1)),
    "channels regrouped": lambda m, x, t: m.end(joined(m, x).unflatten(-1, (5, 2)).transpose(-1, -2).flatten(-2)),
    "one source twice": lambda m, x, t: m.end(torch.cat([(y := m.time(x))[..., :5], y[..., 5:]], dim=-1)),
    "a convolution in groups": lambda m, x, t: m.grouped(joined(m, x)[..., None].transpose(1, 2)),
}
CUT: dict[str, Callable[[Joined, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "read at once": lambda m, x, t: m.end(joined(m, x)),
    "through a norm and an activation": lambda m, x, t: m.end(functional.dropout(m.norm(joined(m, x)).relu())),
    "through a cast and a scale": lambda m, x, t: m.end(2 * joined(m, x).double().float()),
    "through a root-mean-square norm": lambda m, x, t: m.end(functional.rms_norm(joined(m, x), (10,))),
    "with tokens flattened": lambda m, x, t: m.end(joined(m, x).flatten(0, 1)),
    "with a constant beside it": lambda m, x, t: m.end(torch.cat([m.a(x), m.b(x)[..., :5], torch.ones(2, 5, 1)], -1)),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_no_concatenation_of_input_channels_is_not_cut(case: str) -> None:
    assert all(unit.span is None for unit in traced(WHOLE[case]).layers.values())


@pytest.mark.parametrize("case", CUT)
def test_a_layer_that_reads_joined_channels_is_cut_where_they_were_joined(case: str) -> None:
    graph = traced(CUT[case])
    assert inputs(graph, "end[0:4]") == {"a"} and inputs(graph, "end[4:10]") == {"b"}
    assert graph.layers["end[4:10]"].shape == (3, 6)
    assert [n.kind for n in graph.nodes if graph.index["end[0:4]"] in n.inputs] == ["add"]


def test_parts_of_a_convolution_take_its_input_channels() -> None:
    graph = traced(lambda m, x, t: m.conv(joined(m, x).transpose(1, 2)[..., None]))
    assert [unit.shape for unit in graph.layers.values() if unit.module == "conv"] == [(2, 4, 3, 3), (2, 6, 3, 3)]


def test_each_part_meets_what_modulates_the_joined_channels() -> None:
    graph = traced(lambda m, x, t: m.end(joined(m, x) * (1 + m.time(t)) + m.time(t)))
    for unit, source in (("end[0:4]", "a"), ("end[4:10]", "b")):
        (modulated,) = graph.nodes[graph.index[unit]].inputs
        assert {graph.nodes[i].name for i in graph.nodes[modulated].inputs} == {source, "time"}


def test_a_slice_of_joined_values_is_of_its_operand_alone() -> None:
    graph = traced(lambda m, x, t: m.end(torch.cat([m.a(x), m.b(x)], dim=-1)[..., :4]), reads=4)
    assert "b" in graph.bypassed and inputs(graph, "end") == {"a"}


def test_a_layer_called_twice_on_differently_joined_channels_stays_whole() -> None:
    def run(m: Joined, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return m.end(torch.cat([m.a(x), m.b(x)], -1)) + m.end(torch.cat([m.b(x), m.a(x)], -1))

    assert "end" in traced(run).layers


def test_parts_are_views_of_the_weight_that_add_up_to_it() -> None:
    model = small_unet()
    graph = trace(model, (), call_of(model), parts=True)
    modules = weight_modules(model)
    cut = {unit.module for unit in graph.layers.values() if unit.span}
    assert cut == {n for n in modules if n.startswith("up_blocks") and n.endswith((".conv1", "conv_shortcut"))}
    for name in cut:
        weights = [unit_weight(modules, unit) for unit in graph.layers.values() if unit.module == name]
        assert torch.equal(torch.cat(weights, dim=1), modules[name].weight)
        assert all(w.untyped_storage().data_ptr() == modules[name].weight.data_ptr() for w in weights)


def test_skips_of_a_unet_come_from_the_layer_before_and_the_right_level_to_convolution_and_shortcut() -> None:
    model = small_unet()
    graph = trace(model, (), call_of(model), parts=True)
    index = {node.name: i for i, node in enumerate(graph.nodes)}

    def last_layers(i: int) -> set[str]:  # the layers whose sum a node is
        node = graph.nodes[i]
        return {node.name} if node.kind == "layer" else set().union(*(last_layers(s) for s in node.inputs))

    for unit in graph.layers.values():
        if unit.module == "up_blocks.1.resnets.1.conv1" and unit.span and unit.span[0]:  # the last one: from conv_in
            assert last_layers(graph.nodes[index[unit.name]].inputs[0]) == {"conv_in"}
            twin = unit.name.replace("conv1", "conv_shortcut")
            assert graph.nodes[index[twin]].inputs == graph.nodes[index[unit.name]].inputs
