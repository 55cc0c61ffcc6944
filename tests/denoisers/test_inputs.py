"""Inputs are built from names and configuration keys, or read from a file; what cannot be is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.denoisers.small import SMALL
from torch import nn

from qua2sedimo.denoisers import built_inputs, read_inputs, trace
from qua2sedimo.errors import Qua2SeDiMoError


@pytest.mark.parametrize("kind", SMALL)
def test_built_inputs_run_the_denoiser_and_give_the_graph_of_those_made_by_hand(kind: str) -> None:
    model, call = SMALL[kind]()
    graph = trace(model, (), built_inputs(model), parts=True)
    by_hand = trace(model, (), call, parts=True)
    assert [(n.name, n.inputs) for n in graph.nodes if n.kind == "layer"] == [
        (n.name, n.inputs) for n in by_hand.nodes if n.kind == "layer"
    ]


def test_an_argument_that_no_rule_knows_is_named_with_the_remedy() -> None:
    class Odd(nn.Module):
        def forward(self, timestep: torch.Tensor, moon_phase: torch.Tensor) -> torch.Tensor:
            return timestep + moon_phase

    with pytest.raises(Qua2SeDiMoError, match=r"Odd\.forward needs 'moon_phase'") as caught:
        built_inputs(Odd())
    assert "--inputs" in str(caught.value.remedy)


def test_a_width_that_the_configuration_leaves_open_is_named() -> None:
    class Open(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    with pytest.raises(Qua2SeDiMoError, match=r"'hidden_states' cannot be built.*in_channels"):
        built_inputs(Open())


def test_inputs_of_a_file_are_tensors_of_shapes_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    path.write_text(
        '{"x": {"shape": [2, 3]}, "ids": {"shape": [4], "dtype": "int64"}, "t": [1, 2], "n": 3, "k": {"y": [0.5]}}'
    )
    read = read_inputs(path)
    assert read["x"].shape == (2, 3) and read["ids"].dtype == torch.int64
    assert read["t"].tolist() == [1, 2] and read["n"] == 3 and read["k"]["y"].tolist() == [0.5]


@pytest.mark.parametrize("text", ["[1]", '{"x": {"shape": [1], "dtype": "blue"}}', '{"x": ["words"]}'])
def test_a_file_that_holds_no_inputs_is_refused_with_an_example(tmp_path: Path, text: str) -> None:
    path = tmp_path / "inputs.json"
    path.write_text(text)
    with pytest.raises(Qua2SeDiMoError, match=r"inputs\.json") as caught:
        read_inputs(path)
    assert "shape" in str(caught.value.remedy)
