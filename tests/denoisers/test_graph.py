"""Graphs survive their file; damaged files are refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import call_of, small_dit
from torch import nn

from qua2sedimo.denoisers import Graph, Node, trace
from qua2sedimo.errors import Qua2SeDiMoError


def test_a_graph_comes_back_from_its_file_as_it_was(denoiser: nn.Module, tmp_path: Path) -> None:
    graph = trace(denoiser, (), call_of(denoiser))
    graph.save(tmp_path / "graph.json")
    again = Graph.load(tmp_path / "graph.json")
    assert again == graph
    assert again.edges == graph.edges and again.index == graph.index


def test_reaching_counts_edges_backwards_from_the_targets() -> None:
    nodes = tuple(Node(str(i), "layer", inputs, ()) for i, inputs in enumerate([(), (0,), (1,), (0, 2), (3,)]))
    graph = Graph("X", nodes, {})
    assert graph.reaching([4], 0) == {4}
    assert graph.reaching([4], 1) == {4, 3}
    assert graph.reaching([4], 2) == {4, 3, 2, 0}
    assert graph.reaching([4, 1], 1) == {4, 3, 1, 0}
    assert graph.reaching([4], 9) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("text", ['{"format": 1, "nodes": [', "", "\x00\x01"])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(Qua2SeDiMoError, match=r"graph\.json is damaged") as caught:
        Graph.load(path)
    assert caught.value.remedy


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(Qua2SeDiMoError, match="format 99 is not 3"):
        Graph.load(path)


@pytest.mark.parametrize("damage", ["list", "no nodes", "no layers", "short node", "unknown key"])
def test_a_file_of_another_structure_is_refused(tmp_path: Path, damage: str) -> None:
    model = small_dit()
    path = tmp_path / "graph.json"
    trace(model, (), call_of(model)).save(path)
    content = json.loads(path.read_text())
    if damage == "list":
        content = [content]
    elif damage == "no nodes":
        del content["nodes"]
    elif damage == "no layers":
        del content["layers"]
    elif damage == "short node":
        content["nodes"][0] = content["nodes"][0][:2]
    else:
        content["layers"][0]["colour"] = "red"
    path.write_text(json.dumps(content))
    with pytest.raises(Qua2SeDiMoError, match=r"graph\.json"):
        Graph.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"graph\.json does not exist"):
        Graph.load(tmp_path / "graph.json")


def test_a_graph_of_the_format_before_is_read(tmp_path: Path) -> None:
    """It did not list the modules that are left alone."""
    path = tmp_path / "graph.json"
    Graph("X", (), {}, left_alone=("up",)).save(path)
    content = json.loads(path.read_text())
    assert content.pop("left_alone") == ["up"] and content["format"] == 3
    del content["checksum"]  # nor had it one
    path.write_text(json.dumps({**content, "format": 2}))
    assert Graph.load(path) == Graph("X", (), {})
