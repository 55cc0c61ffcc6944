"""The stages of a study, on a denoiser of 8×8 pixels: what each leaves, resumes, refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Choice, Qua2SeDiMoError, Study, StudySettings, quantize
from qua2sedimo.denoisers import weight_modules
from qua2sedimo.images.pictures import to_uint8
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.replay import replay
from qua2sedimo.objective import Objective
from qua2sedimo.options import bit_operations
from qua2sedimo.predictor import FitSettings
from qua2sedimo.quantizers import METHODS
from qua2sedimo.records import Records
from qua2sedimo.report import write_report
from qua2sedimo.report.fill.study import report_data
from qua2sedimo.runtime import (
    PackedSize,
    QuantizedLayer,
    activation_bits,
    quantized_layers,
    quantized_module,
    replace_layers,
    set_activation_bits,
)
from qua2sedimo.search import Budget, budget_bytes
from qua2sedimo.study.stages.compare import Row, _Comparison
from qua2sedimo.study.stages.export import save_configuration
from qua2sedimo.study.stages.fit import fit, fitted, training_data
from qua2sedimo.study.worker import activations_at

BITS, COUNT, IMAGES = 4.6, 24, 8
FIT = FitSettings(epochs=40, channels=8, hops=2)
OPTIONS = "uaq-2,uaq-3,uaq-4,uaq-6,kmeans_a-3,kmeans_a-4,kmeans_a-6"


def settings(**changes: Any) -> StudySettings:
    return small_settings(options=OPTIONS, rounding="nearest", **changes)


@dataclass
class Counter:
    """How often configurations were measured."""

    count: int = 0


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter, plain = Counter(), Measurer.__call__

    def counting(self: Measurer, configuration: Any) -> Any:
        counter.count += 1
        return plain(self, configuration)

    monkeypatch.setattr(Measurer, "__call__", counting)
    return counter


def through(folder: Path, pipeline: Any = None, **changes: Any) -> Study:
    """A study up to its explanation."""
    study = Study.create(folder, settings(**changes), pipeline or small_pipeline())
    study.quantize()
    study.measure(COUNT)
    study.fit(FIT)
    study.explain()
    return study


@dataclass(frozen=True)
class Finished:
    study: Study
    choice: Choice
    packed: PackedSize
    out: Path
    rows: list[Row]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("study")
    study = through(folder / "study")
    choice = study.choose(BITS)
    packed = study.export(BITS, folder / "packed")
    return Finished(study, choice, packed, folder / "packed", study.compare(choice, folder / "packed", IMAGES))


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Study:
    """The finished study up to its explanation, in a folder of its own."""
    shutil.copytree(finished.study.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("choices", "comparison"))
    return Study(tmp_path / "copy", small_pipeline())


def test_every_stage_leaves_its_result_in_the_folder(finished: Finished) -> None:
    left = {path.relative_to(finished.study.folder).as_posix() for path in finished.study.folder.rglob("*")}
    expected = {"study.yaml", "graph.json", "records.db", "sensitivity.json", f"choices/{BITS:g}.json"}
    expected |= {"bank/index.json", "predictor/predictor.json", "predictor/fold4.safetensors"}
    assert expected <= left
    assert not any(name.endswith(("tmp", "pkl", "pickle", "pt")) for name in left)


def test_a_study_opened_again_measures_and_fits_nothing_twice(
    finished: Finished, measured: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in ("study.parts.trace", "study.stages.fit.fit_ensemble", "study.parts.capture_call"):
        monkeypatch.setattr(f"qua2sedimo.{function}", lambda *_, **__: pytest.fail("done before"))
    study = Study(finished.study.folder, small_pipeline())
    study.quantize()
    assert len(study.measure(COUNT)) == COUNT
    study.fit(FIT)
    assert study.explain() == finished.study.explain()
    assert study.choose(BITS) == finished.choice
    assert measured.count == 0


def test_more_configurations_are_added_to_those_there(tmp_path: Path, measured: Counter) -> None:
    study = Study.create(tmp_path / "study", settings(), small_pipeline())
    first = study.measure(3)
    assert measured.count == 3
    again = Study(tmp_path / "study", small_pipeline()).measure(5)
    assert measured.count == 5
    assert [r.configuration for r in again[:3]] == [r.configuration for r in first]
    assert [r.number for r in again] == list(range(5))


def test_measuring_again_gives_the_same_numbers(tmp_path: Path, finished: Finished) -> None:
    again = Study.create(tmp_path / "study", settings(), small_pipeline()).measure(3)
    for record, before in zip(again, finished.study.workspace.records.all("sample")[:3], strict=True):
        assert record.configuration == before.configuration
        assert record.measurement.values["psnr"] == pytest.approx(before.measurement.values["psnr"], rel=1e-4)


def test_the_same_candidates_are_not_measured_for_two_budgets(copy: Study, measured: Counter) -> None:
    before = len(copy.workspace.records.all("candidate"))
    copy.choose(5.3, candidates=3)
    copy.choose(5.301, candidates=3)
    candidates = copy.workspace.records.all("candidate")
    assert 3 <= measured.count == len(candidates) - before < 6
    assert len({r.configuration for r in candidates}) == len(candidates)


def test_more_candidates_measure_only_the_new_ones(copy: Study, measured: Counter) -> None:
    few = copy.choose(5.3, candidates=2)
    assert len(few.candidates) == 2
    many = copy.choose(5.3, candidates=5)
    assert len(many.candidates) == 5 and measured.count <= 7
    assert copy.choose(5.3, candidates=5) == many and measured.count <= 7


@pytest.mark.parametrize("bits", [3.4, 3.7, 4.2, 5.0, 16.0])
def test_a_choice_never_exceeds_its_budget(finished: Finished, bits: float) -> None:
    choice = finished.study.choose(bits, candidates=4)
    space = finished.study.workspace.space
    assert choice.average_bits <= bits
    assert choice.average_bits == pytest.approx(8 * choice.nbytes / space.weights)
    assert choice.nbytes == space.nbytes(choice.configuration)
    assert all(c.average_bits <= bits for c in choice.candidates)


def test_the_best_measured_candidate_is_chosen(finished: Finished) -> None:
    best = max(c.measured["psnr"] for c in finished.choice.candidates)
    assert finished.choice.measured["psnr"] == best
    assert len({json.dumps(c.average_bits) for c in finished.choice.candidates}) > 1


def test_for_a_metric_to_be_lowered_the_lowest_candidate_is_chosen(tmp_path: Path) -> None:
    study = through(tmp_path / "study", objective="features", metrics=["features"])
    choice = study.choose(BITS, candidates=4)
    assert choice.measured["features"] == min(c.measured["features"] for c in choice.candidates)
    assert all(c.predicted > -0.5 for c in choice.candidates)


def test_an_impossible_budget_is_refused_with_the_reachable_range(finished: Finished) -> None:
    low, high = (8 * n / finished.study.workspace.space.weights for n in finished.study.workspace.space.byte_range())
    with pytest.raises(Qua2SeDiMoError, match=r"as small as 1\.5 average bits") as caught:
        finished.study.choose(1.5)
    assert f"{low:.3f} to {high:.3f} bits" in str(caught.value.remedy)
    budget_bytes(finished.study.workspace.space, Budget(low + 1e-3))


def test_the_packed_checkpoint_holds_as_many_bytes_as_were_promised(finished: Finished) -> None:
    assert finished.packed.quantized_bytes == finished.choice.nbytes
    assert finished.packed.average_bits == finished.choice.average_bits
    held = 0
    for file in (finished.out / "transformer").glob("*.safetensors"):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        for name, entry in header.items():
            layer, _, part = name.rpartition(".")
            if layer in finished.choice.configuration and part != "bias":
                held += entry["data_offsets"][1] - entry["data_offsets"][0]
    assert held == finished.choice.nbytes


def test_exporting_exports_the_choice_that_was_made(copy: Study, tmp_path: Path, measured: Counter) -> None:
    choice = copy.choose(5.3, candidates=2)
    before = measured.count
    packed = copy.export(5.3, tmp_path / "packed")
    kept = json.loads((copy.folder / "choices" / "5.3.json").read_text())
    assert len(kept["candidates"]) == len(choice.candidates) == 2
    assert packed.quantized_bytes == choice.nbytes
    assert measured.count == before


def test_the_reloaded_checkpoint_paints_what_was_measured(finished: Finished) -> None:
    """The pictures of "ours" come from the packed files, and agree with the weights that were measured."""
    study, (row,) = finished.study, [r for r in finished.rows if r.kind == "ours"]
    study.workspace.switch.apply(finished.choice.configuration)
    expected = study.workspace.generator(100_000, 100_000 + IMAGES)
    study.workspace.switch.restore()
    assert row.pictures.shape == (IMAGES, 8, 8, 1)
    assert np.abs(row.pictures.astype(int) - to_uint8(expected).astype(int)).max() <= 1
    loaded = DiffusionPipeline.from_pretrained(finished.out)
    loaded.set_progress_bar_config(disable=True)
    assert any(isinstance(m, QuantizedLayer) for m in loaded.transformer.modules())
    made = type(study.workspace.generator)(loaded, study.workspace.generator.generation)(100_000, 100_000 + IMAGES)
    np.testing.assert_allclose(made, expected, atol=5e-3)  # biases and norms are stored in 16 bits


def test_the_pictures_of_ours_are_painted_by_the_files(finished: Finished, tmp_path: Path) -> None:
    """A checkpoint with other weights in the same place gives other pictures, whatever the study's denoiser holds."""
    shutil.copytree(finished.study.folder, tmp_path / "copy")
    for left in (tmp_path / "copy" / "comparison").glob("ours*"):
        left.unlink()
    study = Study(tmp_path / "copy", small_pipeline())
    save_configuration(
        study.workspace, study.workspace.space.uniform(study.workspace.space.union[-1]), tmp_path / "other", {}
    )
    study.workspace.switch.apply(finished.choice.configuration)
    (row,) = [r for r in study.compare(finished.choice, tmp_path / "other", IMAGES) if r.kind == "ours"]
    study.workspace.switch.apply(study.workspace.space.uniform(study.workspace.space.union[-1]))
    expected = to_uint8(study.workspace.generator(100_000, 100_000 + IMAGES)).astype(int)
    assert np.abs(row.pictures - expected).max() <= 1
    assert np.abs(row.pictures - finished.rows[-1].pictures.astype(int)).max() > 3


def test_a_checkpoint_that_cannot_be_replayed_is_an_error_that_names_it(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="generating in a new process failed"):
        replay(tmp_path, finished.study.workspace.generator.generation, range(2), tmp_path)


def test_a_comparison_that_was_killed_leaves_no_pictures(finished: Finished, tmp_path: Path) -> None:
    """Pictures on their way from those who paint them take gigabytes, where they are large."""
    folder, left_out = tmp_path / "copy", shutil.ignore_patterns("comparison")
    shutil.copytree(finished.study.folder, folder, ignore=left_out)
    child = os.fork()
    if child == 0:
        keep = _Comparison._keep

        def kept(self: _Comparison, line: Any, images: np.ndarray, seconds: float | None) -> None:
            keep(self, line, images, seconds)
            if line.kind == "uniform":
                os.kill(os.getpid(), signal.SIGKILL)

        _Comparison._keep = kept  # type: ignore[method-assign]
        try:
            Study(folder, small_pipeline()).compare(finished.choice, finished.out, IMAGES)
        finally:
            os._exit(0)  # whatever happens, the child must not go on with other tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list((folder / "comparison").glob(".qua2sedimo-*.tmp/*.safetensors"))) == 1
    rows = Study(folder, small_pipeline()).compare(finished.choice, finished.out, IMAGES)
    assert [(r.name, r.metrics) for r in rows] == [(r.name, r.metrics) for r in finished.rows]
    whole = finished.study.folder / "comparison"
    assert {p.name for p in (folder / "comparison").iterdir()} == {p.name for p in whole.iterdir()}


def test_the_table_has_full_precision_uniform_rows_and_ours_with_true_sizes(finished: Finished) -> None:
    kinds = [row.kind for row in finished.rows]
    assert kinds == ["full"] + ["uniform"] * 4 + ["outside"] * 2 + ["ours"]
    full, ours = finished.rows[0], finished.rows[-1]
    assert full.metrics["psnr"].value == 80.0
    assert ours.average_bits == finished.choice.average_bits <= BITS
    assert all(row.metrics["psnr"].value < 80 for row in finished.rows[1:])
    assert all(row.metrics["psnr"].images == IMAGES for row in finished.rows)
    by_name = {row.name: row for row in finished.rows}
    assert by_name["uniform uaq-6"].metrics["psnr"].value > by_name["uniform uaq-4"].metrics["psnr"].value
    assert by_name["GGUF Q8_0"].average_bits > by_name["GGUF Q4_K"].average_bits > 4
    assert all(row.seconds > 0 for row in finished.rows[1:]) and full.seconds is None


def test_rows_with_rounded_activations_tell_what_they_cost(finished: Finished, tmp_path: Path) -> None:
    study, choice = finished.study, finished.choice
    *rows, a8, a4 = study.compare(choice, finished.out, IMAGES, act_bits=(8, 4))
    assert [row.name for row in (a8, a4)] == ["ours, W4.6A8", "ours, W4.6A4"]
    assert a8.kind == a4.kind == "activations" and len(rows) == len(finished.rows)
    assert (a4.average_bits, a4.nbytes) == (choice.average_bits, choice.nbytes)
    a32 = rows[-1].metrics["psnr"].value
    assert a4.metrics["psnr"].value < a8.metrics["psnr"].value < a32 + 0.5
    page = write_report(report_data(study.workspace, choice, [*rows, a8, a4]), tmp_path / "report.html")
    assert "W4.6A8" in page.read_text(encoding="utf-8")


def test_activations_are_rounded_where_the_exported_model_rounds_them(finished: Finished) -> None:
    study, configuration = finished.study, finished.choice.configuration
    x, given = torch.randn(2, 1, 8, 8), {"timestep": torch.tensor([3, 30]), "class_labels": torch.tensor([0, 1])}
    study.workspace.switch.apply(configuration)
    with torch.no_grad(), activations_at(study.workspace, configuration, 4):
        found = study.workspace.denoiser(x, **given).sample
    assert activation_bits(study.workspace.denoiser) is None
    packed = deepcopy(study.workspace.denoiser)
    replace_layers(
        packed, quantized_layers(packed, dict(study.workspace.bank.values(configuration)), study.workspace.copies)
    )
    with torch.no_grad():
        assert not torch.equal(study.workspace.denoiser(x, **given).sample, found)
        assert torch.equal(set_activation_bits(packed, 4, integer=False)(x, **given).sample, found)
    study.workspace.switch.restore()


def test_compared_rows_are_read_from_the_folder_the_second_time(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qua2sedimo.study.worker.replay", lambda *_: pytest.fail("made before"))
    monkeypatch.setattr("qua2sedimo.images.generate.Generator.__call__", lambda *_: pytest.fail("made before"))
    again = finished.study.compare(finished.choice, finished.out, IMAGES)
    for row, before in zip(again, finished.rows, strict=True):
        assert (row.name, row.metrics) == (before.name, before.metrics)
        assert np.array_equal(row.pictures, before.pictures)


def test_rows_know_their_configurations_so_that_an_objective_of_size_has_a_value_for_each(finished: Finished) -> None:
    space, layers = finished.study.workspace.space, finished.study.workspace.graph.layers
    macs = {name: layers[name].macs for name in space.layers}
    objective = Objective.parse("psnr - bops/1e9", space.weights, macs)
    for row in finished.rows:
        assert (space.nbytes(row.configuration), space.average_bits(row.configuration)) == (
            row.nbytes,
            row.average_bits,
        )
        psnr = row.metrics["psnr"].value
        expected = psnr - bit_operations(macs, row.configuration) / 1e9
        assert objective.of({"psnr": psnr}, row.average_bits, row.configuration) == pytest.approx(expected)


def test_the_report_is_written_and_tells_the_choice(finished: Finished, tmp_path: Path) -> None:
    data = report_data(finished.study.workspace, finished.choice, finished.rows, packed=finished.out)
    compile(data.code, "loading", "exec")
    assert f'from_pretrained("{finished.out.name}"' in data.code and data.other_bytes > 0
    assert finished.out.is_absolute() and str(finished.out.parent) not in data.code, "a report is passed on"
    page = write_report(data, tmp_path / "report.html")
    assert page.is_file()
    text = page.read_text(encoding="utf-8")
    assert "uniform uaq-4" in text and f"{finished.choice.average_bits:.2f}" in text
    assert data.ours_bytes == finished.choice.nbytes
    assert sum(c.nbytes for c in data.choices) == finished.choice.nbytes
    assert len(data.predictor.pairs) == COUNT
    assert -1 <= data.predictor.rank_correlation.low <= data.predictor.rank_correlation.high <= 1


def test_measuring_leaves_a_pipeline_that_restore_makes_whole(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    before = {name: t.clone() for name, t in pipeline.transformer.state_dict().items()}
    study = Study.create(tmp_path / "study", settings(), pipeline)
    study.measure(2)
    study.workspace.switch.restore()
    assert all(torch.equal(before[name], t) for name, t in pipeline.transformer.state_dict().items())


# What is refused ---------------------------------------------------------------------------------------------------


def test_a_folder_of_other_settings_is_refused_and_the_same_settings_open_it(finished: Finished) -> None:
    folder = finished.study.folder
    Study.create(folder, settings(), small_pipeline())
    for other in (settings(images=3), settings(seed=1), settings(inputs=[1]), small_settings(options="paper")):
        with pytest.raises(Qua2SeDiMoError, match="with other settings") as caught:
            Study.create(folder, other, small_pipeline())
        assert caught.value.remedy


def test_a_bank_of_other_weights_is_refused(finished: Finished) -> None:
    other = Study(finished.study.folder, small_pipeline(seed=1))
    with pytest.raises(Qua2SeDiMoError, match="built from other weights") as caught:
        other.quantize()
    assert "Move the bank folder away" in str(caught.value.remedy)


def test_records_and_a_predictor_of_other_weights_are_refused(finished: Finished) -> None:
    other = Study(finished.study.folder, small_pipeline(seed=1))
    with pytest.raises(Qua2SeDiMoError, match="measurements of another space"):
        _ = other.workspace.records
    with pytest.raises(Qua2SeDiMoError, match="fitted to another space"):
        fitted(other.workspace)[0]


def test_records_of_another_protocol_are_refused(finished: Finished) -> None:
    records = finished.study.workspace.records
    with pytest.raises(Qua2SeDiMoError, match="measurements of another protocol"):
        Records(records.path, finished.study.workspace.identity, settings(images=3).protocol)


@pytest.mark.parametrize("change", [{"objective": "features"}, {"metrics": ["features"]}, {"seed": 3}, {"images": 3}])
def test_settings_edited_after_measuring_are_refused_or_followed(tmp_path: Path, change: dict[str, Any]) -> None:
    """Afterwards every record has the objective that is asked for, or there is a message that says why not."""
    Study.create(tmp_path / "study", settings(), small_pipeline()).measure(2)
    settings(**change).save(tmp_path / "study" / "study.yaml")
    study = Study(tmp_path / "study", small_pipeline())
    try:
        records = study.measure(2)
    except Qua2SeDiMoError as error:
        assert error.remedy
        return
    assert len(records[0].measurement.values[study.workspace.settings.objective]) == study.workspace.settings.images
    training_data(study.workspace, records)


def test_stages_out_of_order_name_the_stage_before(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", settings(), small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match="no measured configurations") as caught:
        study.fit(FIT)
    assert "qua2sedimo measure" in str(caught.value.remedy)
    for stage in (study.explain, lambda: study.choose(BITS), lambda: study.export(BITS, tmp_path / "out")):
        with pytest.raises(Qua2SeDiMoError, match="has no predictor") as caught:
            stage()
        assert "qua2sedimo fit" in str(caught.value.remedy)


def test_layers_to_keep_are_left_out_and_a_pattern_without_a_layer_is_refused(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "a", settings(keep=["*.attn1.*", "proj_out_?"]), small_pipeline())
    assert not any(".attn1." in name or name.startswith("proj_out") for name in study.workspace.space.layers)
    assert "transformer_blocks.0.ff.net.2" in study.workspace.space.layers
    with pytest.raises(Qua2SeDiMoError, match="no layer matches 'no_such'"):
        _ = Study.create(tmp_path / "b", settings(keep=["no_such"]), small_pipeline()).workspace.space


def test_a_model_that_cannot_be_loaded_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="unknown model"):
        Study.create(tmp_path / "study", settings(model="no-such"))
    with pytest.raises(Qua2SeDiMoError, match="must be int"):
        Study.create(tmp_path / "study", settings(inputs=["a cat"]), small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match="unknown name 'beauty'"):
        Study.create(tmp_path / "study", settings(objective="beauty"), small_pipeline())
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("options", ["uaq-4;uaq-3", "uaq-9", "nonsense-4", ""])
def test_options_that_make_no_sense_leave_no_folder(tmp_path: Path, options: str) -> None:
    with pytest.raises(Qua2SeDiMoError):
        Study.create(tmp_path / "study", small_settings(options=options), small_pipeline())
    assert not (tmp_path / "study").exists()


# A kill ------------------------------------------------------------------------------------------------------------

_MEASURE = """
import sys
from tests.study.test_study import Study, small_pipeline
Study(sys.argv[1], small_pipeline()).measure(int(sys.argv[2]))
"""


def test_a_study_killed_while_measuring_goes_on_and_ends_with_the_same_numbers(
    tmp_path: Path, measured: Counter
) -> None:
    folder, count = tmp_path / "killed", 60
    study = Study.create(folder, settings(), small_pipeline())
    study.quantize()
    records = study.workspace.records
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", _MEASURE, str(folder), str(count)], cwd=root)
    try:
        deadline = time.monotonic() + 120
        while len(records.all("sample")) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = len(records.all("sample"))
    assert 3 <= before < count
    found = Study(folder, small_pipeline()).measure(count)
    assert measured.count == count - before
    whole = Study.create(tmp_path / "whole", settings(), small_pipeline()).measure(count)
    assert [r.configuration for r in found] == [r.configuration for r in whole]
    for record, other in zip(found, whole, strict=True):
        assert record.measurement.values["psnr"] == pytest.approx(other.measurement.values["psnr"], abs=1e-3)


# In memory ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partial(fit, settings=FIT)
    monkeypatch.setattr("qua2sedimo.study.stages.search.fit", quick)


def in_memory(pipeline: Any, folder: Path | None = None, **changes: Any) -> Any:
    arguments = {"num_inference_steps": 1, "guidance_scale": 1.0}
    asked = {"bits": BITS, "prompts": [0, 1], "arguments": arguments, "configurations": 20, "folder": folder}
    return quantize(pipeline, **{**asked, **changes})


def test_a_pipeline_is_quantized_in_place_within_the_budget(tmp_path: Path, quick_fit: None) -> None:
    pipeline = small_pipeline()
    assert in_memory(pipeline, tmp_path / "study") is pipeline
    layers = {n: m for n, m in pipeline.transformer.named_modules() if isinstance(m, QuantizedLayer)}
    study = Study(tmp_path / "study", small_pipeline())
    choice = study.choose(BITS)
    assert set(layers) == {study.workspace.graph.layers[name].module for name in study.workspace.space.layers}
    assert sum(layer.quantized_weights()[0].nbytes for layer in layers.values()) == choice.nbytes
    assert choice.average_bits <= BITS
    for name, value in study.workspace.values(choice).items():
        study.workspace.switch.write(name, value)
    for name, layer in layers.items():
        assert torch.equal(layer.weight, study.workspace.modules[name].weight), name
    call = {"class_labels": [3], "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    found, expected = (
        p(**call, generator=torch.Generator().manual_seed(0)).images for p in (pipeline, study.workspace.pipeline)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_quantizing_a_quantized_pipeline_is_refused(quick_fit: None) -> None:
    pipeline = small_pipeline()
    modules = weight_modules(pipeline.transformer)
    values = {n: METHODS["uaq"].quantize(m.weight, [4])[0] for n, m in modules.items()}
    replace_layers(pipeline.transformer, {n: quantized_module(modules[n], value) for n, value in values.items()})
    with pytest.raises(Qua2SeDiMoError, match="already quantized"):
        in_memory(pipeline)


def unchanged(pipeline: Any) -> bool:
    expected = small_pipeline().transformer.state_dict()
    return all(torch.equal(expected[n], t) for n, t in pipeline.transformer.state_dict().items())


def test_an_impossible_budget_leaves_the_pipeline_as_it_was() -> None:
    pipeline = small_pipeline()
    with pytest.raises(Qua2SeDiMoError, match=r"as small as 0\.05"):
        in_memory(pipeline, bits=0.05)
    assert unchanged(pipeline)


def test_a_failure_half_way_leaves_the_pipeline_as_it_was() -> None:
    pipeline = small_pipeline()
    with pytest.raises(Qua2SeDiMoError, match="too few"):
        in_memory(pipeline, configurations=4)
    assert unchanged(pipeline)


def test_an_interruption_half_way_leaves_the_pipeline_as_it_was() -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("measuring") and done == 2:
            raise KeyboardInterrupt

    pipeline = small_pipeline()
    with pytest.raises(KeyboardInterrupt):
        in_memory(pipeline, progress=stop)
    assert unchanged(pipeline)
