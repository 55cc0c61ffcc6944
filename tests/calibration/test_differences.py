"""Without a backward pass: each layer is changed by itself, and what that does to the guided output is measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.calibration.pipelines import PIPELINES, observation
from tests.conftest import small_pipeline, small_settings
from tests.study.test_study import unchanged
from typer.testing import CliRunner

from qua2sedimo import Study
from qua2sedimo.cli import app
from qua2sedimo.denoisers import unit_weight, weight_modules
from qua2sedimo.quantizers import dequantize_weight
from qua2sedimo.statistics import Observation, OutputDifference, RecordedCall, observe
from qua2sedimo.study import weighing

_GUIDANCE = 3.0  # of observation()


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Observation, Sequence[Any]]:
    what = observation(request.param)
    return what, list(observe(tmp_path_factory.mktemp("differences") / "statistics", what).calls)[:3]


def guided(call: RecordedCall, output: torch.Tensor, conditional_first: bool) -> torch.Tensor:
    """What the scheduler is given for each image, from the outputs for both halves of the samples."""
    first, second = output.chunk(2)
    with_text, without = (first, second) if conditional_first else (second, first)
    channels = int((call.cotangents[0].flatten(2).abs().sum(dim=(0, 2)) > 0).sum())  # not those of learned variances
    return (without + _GUIDANCE * (with_text - without))[:, :channels]


def test_a_difference_is_the_squared_change_of_the_guided_output(seen: tuple[Observation, Sequence[Any]]) -> None:
    what, calls = seen
    conditional_first = type(what.denoiser).__name__ == "DiTTransformer2DModel"
    difference = OutputDifference(what.denoiser, calls)
    assert difference().abs().max() == 0
    unit = what.units[len(what.units) // 2]
    weight = unit_weight(weight_modules(what.denoiser), what.graph.layers[unit])
    before = weight.clone()
    with torch.no_grad():
        plain = [call.run(what.denoiser)[0] for call in calls]
        weight.copy_(before + 0.1 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0)))
        found, changed = difference(), [call.run(what.denoiser)[0] for call in calls]
        weight.copy_(before)
    for number, call in enumerate(calls):
        change = guided(call, changed[number], conditional_first) - guided(call, plain[number], conditional_first)
        images = len(change)
        assert call.of_image(number).samples == 2 and call.samples == 2 * images
        expected = images * change[number % images].double().square().sum()
        if conditional_first:  # this pipeline's scheduler has every image twice, with other signs each time
            assert 1 < float(found[number] / expected) < 3
        else:
            assert float(found[number]) == pytest.approx(float(expected), rel=1e-3)


# In a study --------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qua2sedimo.statistics.observing.squared_gradients", lambda *_, **__: None)


def test_a_study_without_gradients_weighs_its_options_layer_by_layer(tmp_path: Path, without_gradients: None) -> None:
    study = Study.create(tmp_path / "study", small_settings(), small_pipeline())
    bank = study.quantize()
    inside = study.workspace
    assert bank.changes.complete and set(bank.changes.of) == set(inside.space.layers)
    assert bank.changes.source == "layers changed one by one" and unchanged(inside.pipeline)
    layer = "transformer_blocks.0.ff.net.2"
    option = bank.near(layer, 3.0)
    calls = inside.statistics.calls.some(4)
    difference = OutputDifference(inside.denoiser, calls)
    weight = unit_weight(weight_modules(inside.denoiser), inside.graph.layers[layer])
    before = weight.clone()
    with torch.no_grad():
        weight.copy_(dequantize_weight(bank.get(layer, option)))
    measured = difference().mean()
    with torch.no_grad():
        weight.copy_(before)
    costs, errors = bank.costs(), bank.errors[layer]
    assert costs is not None and costs[layer][option] == pytest.approx(float(measured), rel=1e-4)
    other = next(o for o in inside.space.options[layer] if o != option)
    ratio = errors[other].relative / errors[option].relative
    assert costs[layer][other] == pytest.approx(float(measured) * ratio, rel=1e-4)
    again = Study(study.folder, small_pipeline()).workspace.bank
    assert all(changes.measured for changes in again.changes.of.values()) and again.costs() == costs
    assert study.quick(3.0).average_bits <= 3.0


def test_layers_rank_as_by_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("by gradients", "one by one"):
        study = Study.create(tmp_path / name, small_settings(observe=8), small_pipeline())
        costs, space = study.quantize().costs(), study.workspace.space
        assert costs is not None
        found.append({(layer, option): cost for layer in space.layers for option, cost in costs[layer].items()})
        monkeypatch.setattr("qua2sedimo.statistics.observing.squared_gradients", lambda *_, **__: None)
    both = np.array([[of[place] for of in found] for place in found[0].keys() & found[1].keys()])
    assert spearmanr(*both.T).statistic > 0.9
    assert 0.3 < np.divide(*both.sum(axis=0)) < 3  # in the same unit


def test_weighing_layer_by_layer_goes_on_where_it_was_interrupted(
    tmp_path: Path, without_gradients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.create(tmp_path / "study", small_settings(), small_pipeline())
    monkeypatch.setattr(weighing, "_LAYERS_KEPT_AFTER", 3)
    layers = study.workspace.graph.layers

    def stop(done: int, total: int, what: str) -> None:
        if what == "weighing options, layer by layer" and done == len(layers) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.quantize(stop)
    assert unchanged(study.workspace.pipeline)
    shutil.copytree(study.folder, tmp_path / "whole", ignore=shutil.ignore_patterns("changes.safetensors"))
    asked, plain = list[int](), OutputDifference.__call__

    def counted(self: OutputDifference) -> torch.Tensor:
        asked.append(1)
        return plain(self)

    monkeypatch.setattr(OutputDifference, "__call__", counted)
    found = Study(study.folder, small_pipeline()).quantize()
    assert 0 < len(asked) < len(layers)
    whole = Study(tmp_path / "whole", small_pipeline()).quantize()
    assert all(torch.equal(whole.changes.of[n].values, of.values) for n, of in found.changes.of.items())


def test_explain_says_where_its_figures_come_from(
    tmp_path: Path, without_gradients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.create(tmp_path / "study", small_settings(), small_pipeline())
    study.quantize()
    load: Callable[..., Any] = lambda *_: small_pipeline()  # noqa: E731
    monkeypatch.setattr("qua2sedimo.study.model.load_pipeline", load)
    shown = CliRunner().invoke(app, ["explain", str(study.folder)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "from layers changed one by one" in shown.output and "from gradients" not in shown.output
