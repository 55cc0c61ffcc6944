"""The quick choice and polishing: within the budget, kept, reloaded bit for bit, refused when damaged."""

from __future__ import annotations

import json
import math
import re
import shutil
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests.conftest import choice_of, small_pipeline, small_settings
from tests.study.test_study import unchanged

from qua2sedimo import Choice, Qua2SeDiMoError, Study, quantize
from qua2sedimo.images.ledger import FINALS, LEARNING, OBSERVED
from qua2sedimo.images.pictures import to_uint8
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.options import Configuration, Option
from qua2sedimo.quantizers import QuantizedWeight, dequantize_weight
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.report.fill.layers import layer_choices
from qua2sedimo.report.fill.sizes import other_sizes
from qua2sedimo.runtime import QuantizedLayer
from qua2sedimo.search import Budget, Constraints, best_configurations, by_gradients
from qua2sedimo.study.choices import Candidate, save_choice
from qua2sedimo.study.stages import last_comparison
from qua2sedimo.study.stages import polish as polish_stage
from qua2sedimo.study.stages import search as search_stage
from qua2sedimo.study.worker import activations_at
from qua2sedimo.terminal.candidates import comparison_text

BITS = 2.6


def settings(**changes: Any) -> Any:
    return small_settings(**{"observe": 8, "batch": 2, **changes})


@dataclass(frozen=True)
class Quick:
    study: Study
    choice: Choice
    out: Path


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Quick:
    folder = tmp_path_factory.mktemp("quick")
    study = Study.create(folder / "study", settings(), small_pipeline())
    choice = study.quick(BITS)
    study.export(choice, folder / "packed")
    return Quick(study, choice, folder / "packed")


@pytest.fixture
def copy(quick: Quick, tmp_path: Path) -> Study:
    """The study in a folder of its own, opened anew."""
    shutil.copytree(quick.study.folder, tmp_path / "copy")
    return Study(tmp_path / "copy", small_pipeline())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[range, bool]]:
    """The images of every measurement from now on, and whether weights were given that the bank does not hold."""
    seen: list[tuple[range, bool]] = []
    plain = Measurer.__call__

    def measuring(self: Measurer, configuration: Any, values: Any = {}) -> Any:  # noqa: B006
        seen.append((self.images, bool(values)))
        return plain(self, configuration, values)

    monkeypatch.setattr(Measurer, "__call__", measuring)
    return seen


def test_a_quick_choice_is_within_its_budget_to_the_byte_and_was_checked_on_fresh_images(quick: Quick) -> None:
    choice, space = quick.choice, quick.study.workspace.space
    assert choice.origin == "quick" and choice.polished is not None
    assert choice.average_bits <= BITS and choice.nbytes <= choice.budget_bytes == int(BITS * space.weights / 8)
    values = quick.study.workspace.values(choice)
    assert choice.nbytes == sum(v.nbytes for v in values.values()) == space.nbytes(choice.configuration)
    assert choice.average_bits == pytest.approx(8 * choice.nbytes / space.weights)
    assert all(str(choice.configuration[unit]) == value.option for unit, value in values.items())
    assert choice.measured["psnr"] > 10 and math.isnan(choice.predicted)
    assert quick.study.workspace.records.all() == []  # nothing was measured on the way
    study = Study(quick.study.folder, small_pipeline()).workspace
    again = study.measurer(FINALS.images(16))(choice.configuration, study.polished_values(choice))
    assert again.means["psnr"] == pytest.approx(choice.measured["psnr"], abs=1e-3)


def test_it_has_the_least_expected_damage_of_what_fits(quick: Quick) -> None:
    """No layer could have another option that fits and that gradients prefer; nor could two."""
    study, chosen = quick.study.workspace, quick.choice.configuration
    assert study.bank.costs() is not None
    scores, shapes = by_gradients(study.unmeasured), study.space.shapes
    spare = quick.choice.budget_bytes - quick.choice.nbytes
    changes = [
        (o.nbytes(shapes[n]) - chosen[n].nbytes(shapes[n]), scores[n][chosen[n]] - scores[n][o], n)
        for n in study.space.layers
        for o in study.space.options[n]
    ]
    assert all(cost >= 0 for nbytes, cost, _ in changes if nbytes <= spare)
    for nbytes, cost, layer in changes:
        better = [c for b, c, n in changes if n != layer and b + nbytes <= spare]
        assert not better or min(better) + cost >= -1e-12


def test_other_sizes_are_expected_to_be_better_the_larger_they_are(quick: Quick) -> None:
    sizes = other_sizes(quick.study.workspace, quick.choice)
    space = quick.study.workspace.space
    assert [s.bits for s in sizes] == sorted({s.bits for s in sizes}) and len(sizes) > 4
    assert all(8 * s.nbytes <= s.bits * space.weights for s in sizes)
    changes = [s.change for s in sizes]
    assert changes == sorted(changes) and changes[0] < 0 < changes[-1]
    below, above = max(s.bits for s in sizes if s.bits < BITS), min(s.bits for s in sizes if s.bits > BITS)
    assert {s.bits: s.change for s in sizes}[below] <= 0 <= {s.bits: s.change for s in sizes}[above]
    layers = quick.study.workspace.graph.layers.values()
    for size in sizes:
        weights = {o: sum(u.weights for u in layers if u.operation == o) for o in size.operations}
        assert sum(bits * weights[o] for o, bits in size.operations.items()) == pytest.approx(8 * size.nbytes)


def test_without_a_predictor_layers_still_tell_why_they_have_their_option(quick: Quick) -> None:
    chosen = layer_choices(quick.study.workspace, quick.choice, None)
    said = [one.decided for one in chosen]
    assert all(said) and len(set(said)) > len(said) / 2  # words that differ from row to row
    costs = [one for one in chosen if "would cost" in one.decided]
    assert costs and all(re.search(r"would cost [\d.]+ dB|less than 0.001 dB", one.decided) for one in costs)
    assert all("would save" in one.reason and "dB" in one.reason for one in costs)


def test_the_sampler_near_stays_by_what_statistics_expect(quick: Quick) -> None:
    study = quick.study.workspace
    scores = by_gradients(study.unmeasured)
    spread = replace(study.sampler, seed=7)
    near = replace(spread, name="near")
    for number in range(0, 12, 3):  # the narrowest of the three spreads
        found = near(number)
        size = study.space.average_bits(found)
        other = replace(spread, bits=(size, size))(number)
        assert tuple(found) == study.space.layers
        assert sum(scores[n][o] for n, o in found.items()) > sum(scores[n][o] for n, o in other.items())


def test_called_again_it_is_returned_and_nothing_is_done(
    copy: Study, quick: Quick, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("stages.polish.polished", "workspace.observe"):
        monkeypatch.setattr(f"qua2sedimo.study.{place}", lambda *_, **__: pytest.fail("done before"))
    assert copy.quick(BITS) == quick.choice
    assert copy.polish(quick.choice) == quick.choice
    assert measured == []


def test_the_polished_weights_come_back_bit_for_bit(copy: Study, quick: Quick) -> None:
    choice = Choice.load(copy.folder / "choices" / f"{quick.choice.name}.json")
    assert choice == quick.choice
    before, after = quick.study.workspace.values(quick.choice), copy.workspace.values(choice)
    assert before.keys() == after.keys()
    for unit, value in after.items():
        assert (value.option, value.shape, value.dtype) == (
            before[unit].option,
            before[unit].shape,
            before[unit].dtype,
        )
        assert torch.equal(dequantize_weight(value), dequantize_weight(before[unit]))
    bank = copy.workspace.bank.values(choice.configuration)
    polished = copy.workspace.polished_values(choice)
    assert polished.keys() < bank.keys()
    assert any(not torch.equal(dequantize_weight(v), dequantize_weight(bank[n])) for n, v in polished.items())


def test_what_is_exported_computes_what_was_measured(quick: Quick) -> None:
    study = quick.study.workspace
    loaded = DiffusionPipeline.from_pretrained(quick.out)
    layers = {n: m for n, m in loaded.transformer.named_modules() if isinstance(m, QuantizedLayer)}
    assert sum(layer.quantized_weights()[0].nbytes for layer in layers.values()) == quick.choice.nbytes
    study.switch.apply(quick.choice.configuration)
    for unit, value in study.polished_values(quick.choice).items():
        study.switch.write(unit, value)
    for name, layer in layers.items():
        assert torch.equal(layer.weight.float(), study.modules[name].weight), name
    study.switch.restore()


def test_the_study_has_its_original_weights_back(quick: Quick) -> None:
    assert unchanged(quick.study.workspace.pipeline)


def test_polishing_is_decided_on_images_to_learn_from_and_checked_on_others(
    tmp_path: Path, measured: list[tuple[range, bool]]
) -> None:
    choice = Study.create(tmp_path / "study", settings(), small_pipeline()).quick(BITS)
    assert choice.polished is not None
    (plain, not_given), (polished, given), (final, kept) = measured
    assert plain == polished and plain[0] in LEARNING and final[0] in FINALS and final[-1] in FINALS
    assert (not_given, given, kept) == (False, True, True)
    assert not any(i in OBSERVED for images, _ in measured for i in images)


def worse(
    denoiser: Any, graph: Any, sources: Any, sample: Any, calls: Any, configuration: Any, values: Any, *_: Any
) -> dict[str, QuantizedWeight]:
    """In place of polishing: weights that are all nearly zero."""
    found = deepcopy(dict(values))
    for value in found.values():
        value.parameters["scale"].zero_()
    return found


@pytest.mark.parametrize("objective", ["psnr", "features", "kernel_full", "psnr - 0.5*bits"])
def test_weights_that_measure_worse_are_not_kept_whatever_the_objective_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Of some metrics less is better, some are of the whole set."""
    made = settings(objective=objective, options="row-2,row-4")
    study = Study.create(tmp_path / "study", made, small_pipeline())
    monkeypatch.setattr(polish_stage, "polished", worse)
    choice = study.quick(3.4)
    assert choice.polished is None and choice.measured
    assert not list((study.folder / "choices").glob("*.safetensors"))
    assert study.quick(3.4) == choice
    assert unchanged(study.workspace.pipeline)


def test_one_image_that_turns_into_another_does_not_outweigh_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Measurer.__call__

    def measuring(self: Measurer, configuration: Any, values: Any = {}) -> Measurement:  # noqa: B006
        found = plain(self, configuration, values)
        gains = [-60.0] + [1.0] * (found.images - 1) if values else [0.0] * found.images
        return replace(found, values={**found.values, "psnr": [40 + gain for gain in gains]})

    monkeypatch.setattr(Measurer, "__call__", measuring)
    choice = Study.create(tmp_path / "study", settings(), small_pipeline()).quick(BITS)
    assert choice.polished is not None


def test_where_nothing_says_what_options_change_it_minimises_the_sum_of_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a text encoder without gradients: its layers, changed one by one, say nothing of a picture."""
    monkeypatch.setattr("qua2sedimo.statistics.observing.squared_gradients", lambda *_, **__: None)
    monkeypatch.setattr("qua2sedimo.study.weighing.is_encoder", lambda _: True)
    study = Study.create(tmp_path / "study", settings(), small_pipeline())
    choice = study.quick(BITS)
    bank, space = study.workspace.bank, study.workspace.space
    assert bank.costs() is None and choice.average_bits <= BITS
    chance = np.random.default_rng(0)
    others = [space.decode([chance.integers(1 + len(space.options[n]) // 2) for n in space.layers]) for _ in range(900)]
    fitting = [c for c in others if space.average_bits(c) <= BITS]
    assert len(fitting) > 10 and all(bank.error_sum(choice.configuration) <= bank.error_sum(c) for c in fitting)


def test_with_nearest_rounding_nothing_is_observed_or_polished(tmp_path: Path, measured: list[Any]) -> None:
    study = Study.create(tmp_path / "study", settings(rounding="nearest"), small_pipeline())
    choice = study.quick(BITS)
    assert choice.polished is None and choice.average_bits <= BITS and choice.measured["psnr"] > 5
    assert not (study.folder / "statistics").exists()
    assert [(images[0] in FINALS, given) for images, given in measured] == [(True, False)]
    assert Choice.load(study.folder / "choices" / f"{choice.name}.json") == choice
    assert Study(study.folder, small_pipeline()).quick(BITS) == choice and len(measured) == 1
    assert study.polish(choice) == choice
    assert unchanged(study.workspace.pipeline)


def test_constraints_hold_for_a_quick_choice(copy: Study) -> None:
    limits = Constraints(min_bits=(("*.attn1.*", 3),), keep=("proj_out_2",))
    choice = copy.quick(Budget(3.5), constraints=limits)
    assert "proj_out_2" not in choice.configuration and choice.average_bits <= 3.5
    for name, option in choice.configuration.items():
        if ".attn1." in name:
            assert 8 * option.nbytes(copy.workspace.space.shapes[name]) / (32 * 32) >= 3
    assert copy.workspace.choice_path(Budget(3.5), limits).exists()
    assert copy.quick(Budget(3.5), constraints=limits) == choice


@pytest.mark.parametrize("budget", [Budget(0.05), Budget.bytes("10B"), Budget(0.001, "ratio")])
def test_an_impossible_budget_is_refused_before_anything_is_observed(tmp_path: Path, budget: Budget) -> None:
    study = Study.create(tmp_path / "study", settings(), small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match="as small as"):
        study.quick(budget)
    assert {path.name for path in study.folder.iterdir()} <= {"study.yaml", "graph.json"}


def test_interrupted_while_polishing_it_goes_on_to_the_same_choice(tmp_path: Path, quick: Quick) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what == "polishing" and done == 3:
            raise KeyboardInterrupt

    study = Study.create(tmp_path / "study", settings(), small_pipeline())
    with pytest.raises(KeyboardInterrupt):
        study.quick(BITS, stop)
    assert not (study.folder / "choices").exists() or not list((study.folder / "choices").glob("*.json"))
    assert unchanged(study.workspace.pipeline)
    for again in (study, Study(study.folder, small_pipeline())):  # the same process, and another
        choice = again.quick(BITS)
        assert choice.polished == quick.choice.polished
        assert choice.configuration == quick.choice.configuration
        shutil.rmtree(study.folder / "choices")


# Damage ------------------------------------------------------------------------------------------------------------


def damaged_files() -> dict[str, Any]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    return {"flipped": flip, "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]), "gone": Path.unlink}


@pytest.mark.parametrize("damage", sorted(damaged_files()))
def test_a_damaged_file_of_polished_weights_is_refused_by_name(copy: Study, tmp_path: Path, damage: str) -> None:
    choice = Choice.load(copy.folder / "choices" / "2.6.json")
    path = copy.folder / "choices" / f"2.6-{choice.polished}.safetensors"
    damaged_files()[damage](path)
    for use in (lambda: copy.export(choice, tmp_path / "out"), lambda: copy.workspace.values(choice)):
        with pytest.raises(Qua2SeDiMoError, match=r"2\.6-\w+\.safetensors is missing or damaged") as caught:
            use()
        assert caught.value.remedy
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_weights_of_a_choice_that_an_earlier_version_polished_are_read(copy: Study) -> None:
    """They had one name, whatever their checksum."""
    choice = Choice.load(copy.folder / "choices" / "2.6.json")
    before = copy.workspace.polished_values(choice)
    path = copy.folder / "choices" / f"2.6-{choice.polished}.safetensors"
    path.rename(path.with_name("2.6.safetensors"))
    assert copy.workspace.polished_values(choice).keys() == before.keys()


def test_a_choice_that_replaces_a_polished_one_removes_its_weights_last(
    copy: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy.folder / "choices"
    choice = Choice.load(folder / "2.6.json")
    (folder / "2.6-thesis.safetensors").write_text("mine")
    values = copy.workspace.polished_values(choice)
    unit = next(iter(values))
    with monkeypatch.context() as killed:
        killed.setattr(Choice, "save", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            save_choice(folder, choice, {unit: values[unit]})
    assert copy.workspace.polished_values(Choice.load(folder / "2.6.json")).keys() == values.keys()
    saved = save_choice(folder, choice, {unit: values[unit]})
    assert Choice.load(folder / "2.6.json") == saved and list(copy.workspace.polished_values(saved)) == [unit]
    kept = {p.name for p in folder.glob("*.safetensors")}
    assert kept == {f"2.6-{saved.polished}.safetensors", "2.6-thesis.safetensors"}


def test_a_choice_of_a_study_before_polishing_is_still_read(copy: Study) -> None:
    path = copy.folder / "choices" / "2.6.json"
    content = json.loads(path.read_text())
    del content["polished"], content["checksum"]
    path.write_text(json.dumps(content))
    assert Choice.load(path).polished is None


# With other stages -------------------------------------------------------------------------------------------------


def test_any_choice_can_be_polished_and_keeps_what_it_was(copy: Study, measured: list[Any]) -> None:
    study = copy.workspace
    middle = [len(study.space.options[n]) // 2 for n in study.space.layers]
    choice = choice_of(copy, study.space.decode(middle))
    choice.save(study.choice_path(choice.budget))
    found = copy.polish(choice)
    assert found.polished is not None and found.configuration == choice.configuration
    assert (found.nbytes, found.origin, found.owner) == (choice.nbytes, choice.origin, choice.owner)
    assert found.candidates == choice.candidates and found.measured != choice.measured
    assert Choice.load(study.choice_path(choice.budget)) == found
    assert len(measured) == 3


@pytest.mark.parametrize("polished", [True, False])
def test_a_search_ends_with_a_polished_choice_if_that_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Any], polished: bool
) -> None:
    if not polished:
        monkeypatch.setattr(polish_stage, "polished", worse)
    made = settings(options="row-2,row-3,row-4", images=2)
    study = Study.create(tmp_path / "study", made, small_pipeline())
    found = study.search(3.6, 70).choice
    won = next(c for c in found.candidates if c.configuration == found.configuration)
    assert found.origin == "search" and (found.polished is not None) == polished
    assert found.measured == won.measured and not list((study.folder / "search").glob("*.safetensors"))
    before = len(measured)
    assert study.search(3.6, 70).choice == found and len(measured) == before


def test_a_search_that_finds_nothing_better_keeps_the_choice_of_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here what was measured is polished to nearly nothing."""
    study = Study.create(tmp_path / "study", settings(options="row-2,row-3,row-4", images=2), small_pipeline())
    study.quantize()
    inside = study.workspace
    rival = next(
        best_configurations(inside.space, by_gradients(inside.unmeasured), int(3.6 * inside.space.weights / 8))
    )

    def ruined(study: Any, configuration: Any, progress: Any) -> dict[str, QuantizedWeight]:
        if configuration == rival:
            return {}
        return worse(None, None, None, None, None, configuration, study.bank.values(configuration))

    other = Configuration({n: Option.parse("row-2") for n in inside.space.layers})
    decided = Candidate(origin="search", configuration=other, average_bits=2.5, predicted=20.0, measured={"psnr": 20.0})
    monkeypatch.setattr(last_comparison, "better_weights", ruined)
    monkeypatch.setattr(search_stage, "_decide", lambda *_: (decided, {"candidates": [decided], "p_value": None}))
    found = study.search(3.6, 70)
    assert found.compared is not None and found.compared.gain < 0
    assert found.compared.gradients > found.compared.measured
    assert found.choice.configuration == rival and found.choice.origin == "search"
    assert found.choice.measured["psnr"] == pytest.approx(found.compared.gradients)
    assert {c.origin for c in found.choice.candidates} == {"search", "gradients"}
    assert study.search(3.6, 70).choice == found.choice
    assert unchanged(inside.pipeline)
    assert "the latter is kept" in comparison_text(found.compared, "psnr")


def test_a_search_interrupted_between_two_polishings_does_not_repeat_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.create(tmp_path / "study", settings(options="row-2,row-3,row-4", images=2), small_pipeline())
    study.quantize()
    space = study.workspace.space
    other = Configuration({n: Option.parse("row-2") for n in space.layers})
    decided = Candidate(origin="search", configuration=other, average_bits=2.5, predicted=20.0, measured={"psnr": 20.0})
    monkeypatch.setattr(search_stage, "_decide", lambda *_: (decided, {"candidates": [decided], "p_value": None}))
    plain, asked = last_comparison.better_weights, list[Configuration]()

    def stopped(study: Any, configuration: Any, progress: Any) -> Any:
        asked.append(configuration)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return plain(study, configuration, progress)

    monkeypatch.setattr(last_comparison, "better_weights", stopped)
    with pytest.raises(KeyboardInterrupt):
        study.search(3.6, 70)
    assert unchanged(study.workspace.pipeline)
    found = Study(study.folder, small_pipeline()).search(3.6, 70)
    assert len(asked) == 3 and asked[1] == asked[2] != asked[0] == other
    assert found.compared is not None and not list((study.folder / "search").glob("*.safetensors"))


def test_a_search_interrupted_while_polishing_is_taken_up_there(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what == "polishing":
            raise KeyboardInterrupt

    study = Study.create(tmp_path / "study", settings(options="row-2,row-4"), small_pipeline())
    with pytest.raises(KeyboardInterrupt):
        study.search(3.6, 70, stop)
    spent = len(study.workspace.records.all())
    found = study.search(3.6, 70).choice
    assert found.polished is not None and len(study.workspace.records.all()) == spent
    assert search_stage.kept_choice(study.workspace, Budget(3.6)) == found


def test_the_comparison_shows_the_polished_weights_and_what_rounded_activations_cost_them(
    quick: Quick, copy: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qua2sedimo.study.stages.compare.UNIFORM", ())
    rows = copy.compare(quick.choice, quick.out, 4, act_bits=(8,))
    kinds = {row.kind: row for row in rows}
    ours, rounded = kinds["ours"], kinds["activations"]
    assert (ours.nbytes, rounded.nbytes) == (quick.choice.nbytes,) * 2
    space = copy.workspace.space
    assert ours.average_bits == pytest.approx(8 * quick.choice.nbytes / space.weights)
    measurer = copy.workspace.measurer(range(100_000, 100_004))
    expected = measurer(quick.choice.configuration, copy.workspace.polished_values(quick.choice)).means["psnr"]
    plain = measurer(quick.choice.configuration).means["psnr"]
    assert abs(plain - expected) > 0.04  # so that they can be told apart
    assert ours.metrics["psnr"].value == pytest.approx(expected, abs=0.02)
    assert rounded.metrics["psnr"].value != ours.metrics["psnr"].value
    study, choice = copy.workspace, quick.choice
    study.switch.apply(choice.configuration)
    for unit, value in study.polished_values(choice).items():
        study.switch.write(unit, value)
    with activations_at(study, choice.configuration, 8):
        pictures = study.generator(100_000, 100_004)
    assert np.abs(rounded.pictures.astype(int) - to_uint8(pictures)).max() <= 1
    study.switch.restore()
    again = copy.compare(quick.choice, quick.out, 4, act_bits=(8,))
    assert [(r.name, r.metrics) for r in again] == [(r.name, r.metrics) for r in rows]


def test_a_pipeline_in_memory_is_quantized_quickly(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    arguments = {"num_inference_steps": 1, "guidance_scale": 1.0}
    found = quantize(pipeline, 2.6, [0, 1], arguments=arguments, effort="quick", folder=tmp_path / "study")
    assert found is pipeline
    layers = {n: m for n, m in pipeline.transformer.named_modules() if isinstance(m, QuantizedLayer)}
    (path,) = (tmp_path / "study" / "choices").glob("*.json")
    choice = Choice.load(path)
    assert sum(layer.quantized_weights()[0].nbytes for layer in layers.values()) == choice.nbytes
    values = Study(tmp_path / "study", small_pipeline()).workspace.values(choice)
    for name, value in values.items():
        assert torch.equal(layers[name].weight.float(), dequantize_weight(value).float()), name


def test_an_impossible_budget_leaves_a_pipeline_in_memory_as_it_was() -> None:
    pipeline = small_pipeline()
    with pytest.raises(Qua2SeDiMoError, match="as small as"):
        quantize(pipeline, 0.05, [0], arguments={"guidance_scale": 1.0}, effort="quick")
    assert unchanged(pipeline)


@pytest.mark.parametrize("stage", ["observing: images", "observing: gradients", "quantizing layers", "polishing"])
def test_an_interruption_leaves_a_pipeline_in_memory_as_it_was(stage: str) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what == stage and done > 1:
            raise KeyboardInterrupt

    pipeline = small_pipeline()
    arguments = {"num_inference_steps": 2, "guidance_scale": 1.0}
    with pytest.raises(KeyboardInterrupt):
        quantize(pipeline, 2.6, [0], arguments=arguments, effort="quick", progress=stop)
    assert unchanged(pipeline)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipeline.transformer.modules())


@pytest.mark.parametrize(
    ("gains", "images", "kept"),
    [
        ([1.0] * 13 + [-20.0] * 3, 16, True),  # most come nearer, though their mean does not
        ([-1.0] * 13 + [20.0] * 3, 16, False),
        ([1.0] * 12 + [-1.0] * 4 + [-1.0] * 14, 30, False),  # they disagree: the others decide too
        ([1.0] * 4 + [-1.0] * 12 + [1.0] * 14, 30, True),
    ],
)
def test_more_images_decide_on_polishing_where_the_first_disagree(gains: list[float], images: int, kept: bool) -> None:
    seen: list[int] = []

    def measurer(which: range, metrics: tuple[str, ...]) -> Any:
        seen.extend(which)
        places = [i - LEARNING.first for i in which]

        def measured(configuration: Any, values: dict[str, Any]) -> Any:
            return SimpleNamespace(values={"psnr": [30.0 + (gains[i] if values else 0.0) for i in places]})

        return measured

    study: Any = SimpleNamespace(observed_images=90, measurer=measurer)
    choice: Any = SimpleNamespace(configuration={})
    values: Any = {"layer": None}
    assert polish_stage._nearer(study, choice, values) is kept
    assert seen == list(LEARNING.images(images))
