"""Two denoisers of one pipeline in one study with one budget: Wan 2.2, with one for much noise and one for little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.commands.conftest import refused, run  # noqa: F401
from tests.sweep.build import built
from tests.sweep.entries import ENTRIES, TWO_STAGES
from tests.sweep.registry import in_scope

from qua2sedimo import Qua2SeDiMoError, Study, StudySettings, quantize
from qua2sedimo.denoisers import load_pipeline
from qua2sedimo.formats.files import read_json
from qua2sedimo.images.generate import Generator
from qua2sedimo.measuring.exported import export_digest
from qua2sedimo.measuring.run import Workers
from qua2sedimo.options import Option
from qua2sedimo.predictor import FitSettings
from qua2sedimo.report.fill.study import _provenance
from qua2sedimo.runtime import QuantizedLayer
from qua2sedimo.study.stages.export import save_configuration
from qua2sedimo.study.stages.search import least_images

BOTH = ["transformer", "transformer_2"]


def wan() -> Any:
    return built(in_scope()["WanPipeline"], TWO_STAGES)


def settings(model: Path, **changes: Any) -> StudySettings:
    asked: dict[str, Any] = {
        "model": str(model), "component": BOTH, "inputs": ["a red fox"], "arguments": dict(TWO_STAGES.arguments),
        "images": 2, "observe": 2, "options": "row-2,row-4", "metrics": ["psnr"], "batch": 2,
    }  # fmt: skip
    return StudySettings(**{**asked, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan") / "model"
    wan().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study.create(tmp_path_factory.mktemp("study") / "study", settings(model))


def packed(module: Any) -> int:
    return sum(isinstance(m, QuantizedLayer) for m in module.modules())


def test_both_share_one_budget_and_are_packed_each_in_its_folder(study: Study, run: Any, tmp_path: Path) -> None:  # noqa: F811
    choice = study.quick(3.0)
    inside = study.workspace
    units = {name: [u for u in choice.configuration if u.startswith(f"{name}.")] for name in BOTH}
    assert len(units["transformer"]) == len(units["transformer_2"]) == len(choice.configuration) / 2
    assert choice.average_bits <= 3.0
    assert {str(choice.configuration[u]) for u in choice.configuration} == {"row-2", "row-4"}
    assert len(study.measure(2)) == 2
    out = tmp_path / "out"
    size = study.export(choice, out)
    assert size.weights == inside.space.weights
    info = read_json(out / "qua2sedimo.json")
    assert info["components"] == BOTH and info["average_bits"] <= 3.0
    loaded = load_pipeline(str(out))
    for name in BOTH:
        assert packed(getattr(loaded, name)) == len(units[name])
        assert (out / name / "config.json").is_file()
    inside.switch.apply(choice.configuration)
    for unit, value in inside.polished_values(choice).items():
        inside.switch.write(unit, value)
    expected = inside.generator(0, 1)
    inside.switch.restore()
    made = Generator(loaded, inside.generation)(0, 1)
    assert np.abs(made - expected).max() < 1e-4
    ended = run("card", out, "--study", inside.folder)
    assert ended.status == 0, ended.err
    card = (out / "README.md").read_text().replace("\\", "")
    assert "WanTransformer3DModel (transformer, transformer_2) is quantized" in card
    assert "not quantized." not in card
    digest = export_digest(out)
    with (out / "transformer_2" / "config.json").open("a") as file:
        file.write("\n")
    assert export_digest(out) != digest


def test_each_is_observed_and_has_an_effect(study: Study) -> None:
    inside = study.workspace
    assert sorted(p.name for p in inside.statistics_folder.iterdir()) == BOTH
    inside.build_bank()
    full = inside.full_precision(range(2))
    for name in BOTH:
        layer = next(u for u in inside.space.layers if u.startswith(f"{name}.") and "ffn" in u)
        assert inside.observed(layer).moment is not None
        inside.switch.apply({layer: inside.space.options[layer][0]})
        assert np.abs(inside.generator(0, 2) - full).max() > 0
    inside.switch.restore()
    assert np.array_equal(inside.generator(0, 2), full)


def test_every_stage_takes_both(study: Study, tmp_path: Path) -> None:
    """Fit, explain, choose, search and frontier; what they choose has units of both."""
    study.measure(20)
    study.fit(FitSettings(epochs=4, channels=4, hops=1))
    assert {layer.partition(".")[0] for layer in study.explain().total()} == set(BOTH)
    chosen, found = study.choose(3.0, candidates=2), study.search(2.8, least_images() + 40)
    for choice in (chosen, found.choice):
        assert {unit.partition(".")[0] for unit in choice.configuration} == set(BOTH)
    assert chosen.average_bits <= 3.0 and found.choice.average_bits <= 2.8 and found.rounds
    size = study.export(found.choice, tmp_path / "out")
    assert size.quantized_bytes == found.choice.nbytes
    assert {p.name for p in study.frontier((3.0,), images=2)} >= {"3", "choice-2.8", "uniform-row-4"}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_workers_measure_both_as_one_process_does(model: Path, tmp_path: Path) -> None:
    alone, spread = (Study.create(tmp_path / name, settings(model)) for name in ("alone", "spread"))
    expected, found = alone.measure(4), spread.measure(4, workers=Workers(2))
    assert [r.configuration for r in found] == [r.configuration for r in expected]
    assert [r.measurement.values for r in found] == [r.measurement.values for r in expected]


def test_a_denoiser_that_is_not_reached_is_said(refused: Any, run: Any, model: Path, tmp_path: Path) -> None:  # noqa: F811
    once = '{"num_inference_steps": 1, "height": 16, "width": 16, "num_frames": 5, "guidance_scale": 1.0}'
    both = ("--component", "transformer", "--component", "transformer_2")
    assert run("init", model, tmp_path / "study", "--prompt", "a fox", "--arguments", once, *both).status == 0
    said = refused("plan", tmp_path / "study")
    assert "not reached with these arguments" in said and "more steps" in said
    assert "no denoiser 'unet'" in refused("init", model, tmp_path / "x", "--prompt", "a", "--component", "unet")
    twice = ("--component", "transformer", "--component", "transformer")
    assert "named twice" in refused("init", model, tmp_path / "x", "--prompt", "a", *twice)


def test_what_is_left_whole_is_said_in_card_and_report(run: Any, model: Path, tmp_path: Path) -> None:  # noqa: F811
    half = Study.create(
        tmp_path / "study", settings(model, component="transformer", options="uaq-4", rounding="nearest")
    )
    save_configuration(half.workspace, half.workspace.space.uniform(Option.parse("uaq-4")), tmp_path / "out", {})
    ended = run("card", tmp_path / "out")
    assert ended.status == 0, ended.err
    card = (tmp_path / "out" / "README.md").read_text().replace("\\", "")
    assert "WanTransformer3DModel (transformer) is quantized" in card and "Its transformer_2 is not quantized" in card
    assert _provenance(half.workspace, None, False)["not quantized"].startswith("transformer_2, a whole denoiser")


def test_quantize_in_memory_replaces_layers_of_the_named_denoiser_only() -> None:
    pipeline = wan()
    with pytest.raises(Qua2SeDiMoError, match="no denoiser 'unet'"):
        quantize(pipeline, 3.0, ["a fox"], component="unet")
    assert packed(pipeline.transformer) == 0
    assert "WanPipeline" in ENTRIES
