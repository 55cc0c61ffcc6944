"""The paper's denoisers at full size, from their published configurations, without weights."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from qua2sedimo.denoisers import Graph, architecture, built_inputs, trace, weight_layers
from qua2sedimo.options import options_for
from qua2sedimo.runtime import Part, Qua2SeDiMoConfig, Storage
from qua2sedimo.runtime.table import LayerTable, layer_modules

CONFIGS = Path(__file__).parent / "configs"
KNOWN = {  # layers, weights (biases not counted), modules that are cut
    "sd-v1-5": (282, 859_077_120, 24),
    "sdxl-base-1.0": (794, 2_565_880_320, 19),
    "pixart-alpha-512": (287, 610_228_224, 0),
    "pixart-sigma-1024": (287, 610_228_224, 0),
    "dit-xl-2-512": (255, None, 0),
    "hunyuan-dit-v1": (472, None, 20),
}


@pytest.fixture(scope="module", params=KNOWN)
def full(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Graph]:
    model = architecture(CONFIGS / f"{request.param}.json")
    graph = trace(model, (), built_inputs(model), parts=True)
    return request.param, model, graph


def test_layers_and_weights_are_those_of_the_published_model(full) -> None:  # type: ignore[no-untyped-def]
    name, model, graph = full
    layers, weights, cut = KNOWN[name]
    found = weight_layers(model)
    assert len(found) == layers
    assert weights in (None, sum(layer.weights for layer in found.values()))
    assert len({unit.module for unit in graph.layers.values() if unit.span}) == cut
    assert all(parameter.is_meta for parameter in model.parameters())


def test_every_layer_is_in_the_graph_once_reaches_the_output_and_its_parts_make_it_up(full) -> None:  # type: ignore[no-untyped-def]
    _, model, graph = full
    assert all(source < i for source, i in graph.edges)
    names = [node.name for node in graph.nodes if node.kind == "layer"]
    assert len(names) == len(set(names)) and set(names) == set(graph.layers)
    (end,) = set(range(len(graph.nodes))) - {source for source, _ in graph.edges}
    assert graph.reaching([end], len(graph.nodes)) == set(range(len(graph.nodes)))
    weights: dict[str, int] = dict.fromkeys(graph.bypassed, 0)
    for unit in graph.layers.values():
        weights[unit.module] = weights.get(unit.module, 0) + unit.weights
    for name, layer in weight_layers(model).items():
        assert weights[name] == (0 if name in graph.bypassed else math.prod(layer.shape))


def test_only_fused_pooler_projections_are_left_alone(full) -> None:  # type: ignore[no-untyped-def]
    name, _, graph = full
    pooler = "time_extra_emb.pooler"
    fused = {f"{pooler}.{x}_proj" for x in "qkvc"} if name == "hunyuan-dit-v1" else set()
    assert set(graph.bypassed) == fused


def test_the_timestep_mlp_that_every_dit_block_repeats_is_named_as_one_that_may_be_tied(full) -> None:  # type: ignore[no-untyped-def]
    name, _, graph = full
    groups = {group[0].removeprefix("transformer_blocks.0."): len(group) for group in graph.tied_candidates}
    embedder = "norm1.emb.timestep_embedder"
    expected = {f"{embedder}.linear_1": 28, f"{embedder}.linear_2": 28} if name == "dit-xl-2-512" else {}
    assert groups == expected


def test_blocks_21_to_39_of_hunyuan_receive_block_39_minus_i() -> None:
    from tests.denoisers.test_more_denoisers import layers_behind

    model = architecture(CONFIGS / "hunyuan-dit-v1.json")
    graph = trace(model, (), built_inputs(model), parts=True)
    for i in range(21, 40):
        skipped = layers_behind(graph, f"blocks.{i}.skip_linear[1408:2816]")
        numbers = [int(name.split(".")[1]) for name in skipped if name.startswith("blocks.")]
        assert max(numbers) == 39 - i


def test_a_configuration_that_names_no_model_is_refused(tmp_path: Path) -> None:
    from qua2sedimo.errors import Qua2SeDiMoError

    for content, message in (({}, "_class_name"), ({"_class_name": "Nonsense"}, "no model class 'Nonsense'")):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(Qua2SeDiMoError, match=message):
            architecture(tmp_path / "config.json")


def test_what_does_not_depend_on_absent_weights_is_really_computed() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, timestep: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = x + torch.from_numpy(torch.arange(4.0).numpy())
            y = self.early(x) if timestep[0].item() > 10 else self.late(x)
            return y[mask]

    model = Branching().to("meta")
    call = {"x": torch.ones(2, 4), "timestep": torch.tensor([3, 3]), "mask": torch.tensor([True, False])}
    assert trace(model, (), call).bypassed == ("early",)


@pytest.mark.parametrize("option_set", ["default", "wide"])
def test_the_table_of_a_packed_model_is_short_under_all_options(full, option_set: str) -> None:  # type: ignore[no-untyped-def]
    """diffusers sends a quantization_config along with its requests if it has 2,048 characters at most."""
    _, model, graph = full
    options = [Storage(option, torch.bfloat16) for option in options_for(option_set, (4096, 4096))]
    stored: dict[str, list[Part]] = {}
    for unit, storage in zip(graph.layers.values(), itertools.cycle(options)):
        stored.setdefault(unit.module, []).append(Part(unit.span, storage))
    copies = {unit.module: unit.copies for unit in graph.layers.values() if unit.copies}
    config = Qua2SeDiMoConfig.of(LayerTable.of(layer_modules(model), stored, copies), "0" * 16, 8)
    assert len(config.options) == len(options)
    assert len(json.dumps(config.to_dict(), sort_keys=True)) <= 2048
