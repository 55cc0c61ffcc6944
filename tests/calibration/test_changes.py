"""What options change in the output: as by moving weights, in parts where memory is short, kept, resumed, refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibration.pipelines import PIPELINES, observation
from tests.conftest import small_pipeline, small_settings
from torch import nn

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.denoisers import unit_weight, weight_modules
from qua2sedimo.quantizers import dequantize_weight
from qua2sedimo.statistics import Observation, RecordedCall, observe, output_changes
from qua2sedimo.study import weighing


def mistakes(what: Observation, unit: str, count: int = 2) -> list[torch.Tensor]:
    """Errors of some options: small."""
    chance = torch.Generator().manual_seed(what.units.index(unit))
    shape = what.graph.layers[unit].shape
    return [2.0**-10 * torch.randn(shape, generator=chance) for _ in range(count)]


def products(what: Observation, unit: str, gradient: torch.Tensor) -> torch.Tensor:
    return torch.stack([(gradient * error).sum() for error in mistakes(what, unit)])


def output(denoiser: nn.Module, call: RecordedCall) -> float:
    with torch.no_grad():
        return sum(float((o.double() * g).sum()) for o, g in zip(call.run(denoiser), call.cotangents))


def moved(what: Observation, unit: str, call: RecordedCall, by: torch.Tensor) -> float:
    """Half of what the output changes between the unit's weight with its error and the weight without it twice."""
    layer, modules = what.graph.layers[unit], dict(what.denoiser.named_modules())
    weights = list({id(modules[n].weight): unit_weight({layer.module: modules[n]}, layer)
                    for n in (layer.module, *layer.copies)}.values())  # fmt: skip
    before = [w.clone() for w in weights]
    found = []
    for sign in (1, -1):
        for weight, original in zip(weights, before):
            weight.copy_(original + sign * by)
        found.append(output(what.denoiser, call))
    for weight, original in zip(weights, before):
        weight.copy_(original)
    return (found[0] - found[1]) / 2


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Observation, Sequence[Any]]:
    what = observation(request.param)
    return what, list(observe(tmp_path_factory.mktemp("changes") / "statistics", what).calls)[:2]


def test_changes_are_those_of_moving_the_weights(seen: tuple[Observation, Sequence[RecordedCall]]) -> None:
    """Whole layers, parts of layers, convolutions, and layers that are used several times."""
    what, calls = seen
    layers = {unit: what.graph.layers[unit] for unit in what.units}
    found = output_changes(what.denoiser, layers, calls, lambda *of: products(what, *of))
    assert found is not None and found.keys() == layers.keys()
    some = [u for i, u in enumerate(what.units) if i % 4 == 0 or layers[u].span or layers[u].copies]
    for unit in some:
        expected = [[moved(what, unit, call, error) for call in calls] for error in mistakes(what, unit)]
        wanted = torch.tensor(expected).float()
        torch.testing.assert_close(found[unit], wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()) + 1e-5)
    assert not any(p.requires_grad or p.grad is not None for p in what.denoiser.parameters())


def test_where_memory_is_short_calls_are_run_in_halves(
    seen: tuple[Observation, Sequence[RecordedCall]], monkeypatch: pytest.MonkeyPatch
) -> None:
    what, calls = seen
    layers = {unit: what.graph.layers[unit] for unit in what.units[:3]}

    def found() -> dict[str, torch.Tensor] | None:
        return output_changes(what.denoiser, layers, calls, lambda *of: products(what, *of))

    whole, run, samples = found(), RecordedCall.run, []

    def short(call: RecordedCall, denoiser: nn.Module) -> list[torch.Tensor]:
        if call.samples > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        samples.append(call.samples)
        return run(call, denoiser)

    monkeypatch.setattr(RecordedCall, "run", short)
    parts = found()
    assert whole is not None and parts is not None and len(samples) == sum(call.samples for call in calls)
    for unit in layers:
        torch.testing.assert_close(parts[unit], whole[unit], rtol=1e-3, atol=1e-5)

    def full(call: RecordedCall, denoiser: nn.Module) -> list[torch.Tensor]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(RecordedCall, "run", full)
    assert found() is None
    assert not any(p.requires_grad for p in what.denoiser.parameters())


# In a study --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = Study.create(tmp_path_factory.mktemp("weighed") / "study", small_settings(), small_pipeline())
    study.quantize()
    return study.folder


def test_costs_are_the_mean_squares_of_changes(weighed: Path) -> None:
    study = Study(weighed, small_pipeline()).workspace
    bank, calls = study.bank, study.statistics.calls
    assert bank.changes.complete and set(bank.changes.of) == set(bank.space.layers)
    costs = bank.costs()
    assert costs is not None
    modules = weight_modules(study.denoiser)
    for layer in bank.space.layers[::3]:
        unit = study.graph.layers[layer]
        weight = unit_weight(modules, unit)
        for option in bank.space.options[layer][:2]:
            error = dequantize_weight(bank.get(layer, option)).float() - weight.half().float()
            tiny = 0.03 * error
            before, total = weight.clone(), 0.0
            for call in calls:
                ends = []
                for sign in (1, -1):
                    for name in (unit.module, *unit.copies):
                        place = unit_weight({unit.module: study.denoiser.get_submodule(name)}, unit)
                        place.copy_(before + sign * tiny)
                    ends.append(output(study.denoiser, call))
                total += ((ends[0] - ends[1]) / 0.06) ** 2
            for name in (unit.module, *unit.copies):
                unit_weight({unit.module: study.denoiser.get_submodule(name)}, unit).copy_(before)
            assert costs[layer][option] == pytest.approx(total / len(calls), rel=0.1)


def test_weighing_goes_on_where_it_was_interrupted(weighed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(weighed, tmp_path / "study")
    (tmp_path / "study" / "bank" / "changes.safetensors").unlink()
    study = Study(tmp_path / "study", small_pipeline())
    monkeypatch.setattr(weighing, "_KEPT_AFTER", 1)

    def stop(done: int, total: int, what: str) -> None:
        if what == "weighing options" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.quantize(stop)
    asked: list[Any] = []
    plain = weighing.output_changes

    def counting(denoiser: Any, layers: Any, calls: Any, *rest: Any) -> Any:
        asked.extend(calls)
        return plain(denoiser, layers, calls, *rest)

    monkeypatch.setattr(weighing, "output_changes", counting)
    again = Study(tmp_path / "study", small_pipeline()).quantize()
    assert 0 < len(asked) < len(again.changes.of["proj_out_1"].places)
    first = Study(weighed, small_pipeline()).workspace.bank
    assert first.changes.of.keys() == again.changes.of.keys()
    for layer, changes in first.changes.of.items():
        assert torch.equal(again.changes.of[layer].values, changes.values)
        assert again.changes.of[layer].places == changes.places


def test_a_file_that_was_changed_or_is_of_another_bank_is_refused_by_name(weighed: Path, tmp_path: Path) -> None:
    shutil.copytree(weighed, tmp_path / "study")
    path = tmp_path / "study" / "bank" / "changes.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(Qua2SeDiMoError, match=re.escape(str(path))) as refused:
        Study(tmp_path / "study", small_pipeline()).quick(3.0)
    assert "qua2sedimo quantize" in (refused.value.remedy or "")
    path.unlink()
    assert Study(tmp_path / "study", small_pipeline()).quantize().changes.complete


def test_where_gradients_do_not_fit_costs_are_those_of_squared_gradients(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(weighing, "output_changes", lambda *_: None)
    study = Study.create(tmp_path / "study", small_settings(), small_pipeline())
    bank = study.quantize()
    assert bank.changes.complete and not bank.changes.of
    assert bank.costs() == {layer: {o: e.cost for o, e in of.items()} for layer, of in bank.errors.items()}
    monkeypatch.undo()
    assert not Study(tmp_path / "study", small_pipeline()).quantize().changes.of  # it is not tried again
