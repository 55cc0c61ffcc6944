"""Choosing from the command line: sizes in every unit, constraints, reasons, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import small_pipeline, small_settings
from typer.testing import CliRunner

from qua2sedimo import Choice, Qua2SeDiMoError, Study
from qua2sedimo.cli import app
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import FitSettings
from qua2sedimo.search import Budget, Constraints, allow, best_configurations, reasons
from qua2sedimo.study.evidence import evidence
from qua2sedimo.study.stages.choose import _of_blocks, kept_choice, propose_candidates, scores_for, why
from qua2sedimo.study.stages.tradeoff import objective_path

OPTIONS = "uaq-2,uaq-4,uaq-6,kmeans_a-3,kmeans_a-4"
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("choosing") / "study"
    made = Study.create(folder, small_settings(options=OPTIONS), small_pipeline())
    made.quantize()
    made.measure(20)
    made.fit(FitSettings(epochs=20, channels=8, hops=2))
    return made


@pytest.fixture
def run(study: Study, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("qua2sedimo.study.model.load_pipeline", lambda *_: small_pipeline())
    return lambda *arguments: CliRunner().invoke(app, list(arguments), env={"COLUMNS": "220"})


def test_several_sizes_in_every_unit_are_chosen_at_once(study: Study, run: Run) -> None:
    half = f"{study.workspace.space.weights * 4 // 8}B"
    sizes = ["--bits", "3.9", "--bytes", half, "--ratio", "0.3"]
    result = run("choose", str(study.folder), *sizes, "--candidates", "2")
    assert result.exit_code == 0, result.output
    budgets = [Budget(3.9), Budget.bytes(half), Budget(0.3, "ratio")]
    for budget in budgets:
        choice = Choice.load(study.workspace.choice_path(budget))
        assert choice.nbytes <= budget.nbytes(study.workspace.space.weights)
        assert len(choice.candidates) == 2
        psnr = [c.measured["psnr"] for c in choice.candidates]
        assert psnr == sorted(psnr, reverse=True) and choice.measured["psnr"] == psnr[0]
        assert choice.p_value is not None and 0 < choice.p_value <= 1 and f"p = {choice.p_value:.3f}" in result.output
    assert len({study.workspace.choice_path(b) for b in budgets}) == 3


def test_constraints_hold_and_the_choice_is_kept_apart(study: Study, run: Run, tmp_path: Path) -> None:
    first = study.workspace.space.layers[0]
    limits = Constraints((first,), (("transformer_blocks.0.*", 4),), (), 1)
    result = run(
        "choose", str(study.folder), "--bits", "5", "--candidates", "2", "--keep", first,
        "--min-bits", "transformer_blocks.0.*=4", "--methods-at-most", "1", "--why",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "kept in 16 bits" in result.output
    choice = kept_choice(study.workspace, Budget(5.0), limits)
    assert choice is not None and kept_choice(study.workspace, Budget(5.0)) is None
    chosen = choice.configuration
    assert first not in chosen and len({o.method for o in chosen.values()}) == 1
    assert all(o.bits >= 4 for n, o in chosen.items() if n.startswith("transformer_blocks.0."))
    assert choice.nbytes == study.workspace.space.nbytes(chosen) <= Budget(5.0).nbytes(study.workspace.space.weights)
    name = study.workspace.choice_path(Budget(5.0), limits).stem
    result = run("export", str(study.folder), str(tmp_path / "out"), "--choice", name)
    assert result.exit_code == 0, result.output


def test_every_layer_has_a_reason_that_its_scores_bear_out(study: Study) -> None:
    choice = study.choose(3.9, candidates=2)
    scores, space, chosen = scores_for(study.workspace), study.workspace.space, choice.configuration
    told = {r.layer: r for r in why(study.workspace, choice)}
    expected = evidence(study.workspace).model.log_damage
    for r in reasons(space, scores, chosen, allow(space)):
        offered = {o: (o.nbytes(space.shapes[r.layer]), scores[r.layer][o]) for o in space.options[r.layer]}
        size, score = offered[r.option]
        if r.cheaper:
            assert (size - r.saved, score - r.cost) == pytest.approx(offered[r.cheaper])
            assert all(s <= score - r.cost + 1e-12 for n, s in offered.values() if n < size)
        if r.better:
            assert (size + r.needs, score + r.gain) == pytest.approx(offered[r.better])
        assert (r.why == "least") == all(n >= size for n, _ in offered.values())
        # What is told is what the whole loses or gains, in decibels, if only this layer changes.
        row = study.workspace.space.layers.index(r.layer)
        for other, decibels in ((r.cheaper, told[r.layer].cost), (r.better, -told[r.layer].gain)):
            if other:
                at = [list(space.options[n]).index(chosen[n]) for n in space.layers]
                before = np.exp([expected[i, o] for i, o in enumerate(at)]).sum()
                at[row] = list(space.options[r.layer]).index(other)
                after = np.exp([expected[i, o] for i, o in enumerate(at)]).sum()
                assert decibels == pytest.approx(10 * np.log10(after / before))


def test_candidates_of_an_earlier_fit_of_another_loss_compete_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = study.choose(3.7, candidates=3)
    study.fit(FitSettings(loss="mse", epochs=20, channels=8, hops=2))
    try:
        monkeypatch.setattr("qua2sedimo.measuring.measurer.Measurer.__call__", lambda *_: pytest.fail("measured anew"))
        monkeypatch.setattr("qua2sedimo.study.stages.choose.propose_candidates", lambda *_: _as_proposed(first, 1))
        second = study.choose(3.7, candidates=1)
    finally:
        study.fit(FitSettings(epochs=20, channels=8, hops=2))
    assert {c.configuration for c in second.candidates} == {c.configuration for c in first.candidates}
    assert second.configuration == first.configuration
    assert sum(c.origin.endswith("earlier fit") for c in second.candidates) == 2
    assert second.p_value == first.p_value


def _as_proposed(choice: Choice, count: int) -> list[tuple[Configuration, str]]:
    return [(c.configuration, c.origin) for c in choice.candidates[:count]]


def test_a_reason_tells_a_constraint_from_the_budget(study: Study) -> None:
    space, scores = study.workspace.space, scores_for(study.workspace)
    first, second = space.layers[:2]
    allowed = allow(space, Constraints(keep=(first,), min_bits=((second, 6),)))
    nbytes = Budget(5.0).nbytes(space.weights)
    (chosen,) = best_configurations(space, scores, nbytes, 1, allowed)
    found = {r.layer: r for r in reasons(space, scores, chosen, allowed, {second: ("twin",)})}
    assert found[first].why == "kept" and found[first].option is None
    assert found[second].why == "constraint" and found[second].tied == ("twin",)
    plenty = Configuration((n, max(space.options[n], key=lambda o: scores[n][o])) for n in space.layers)
    assert {r.why for r in reasons(space, scores, plenty, allow(space))} <= {"best", "least"}


def test_nothing_is_measured_if_one_of_several_sizes_is_impossible(study: Study, run: Run) -> None:
    before = len(study.workspace.records.all("candidate"))
    result = run("choose", str(study.folder), "--bits", "4.4", "--bytes", "10B")
    assert isinstance(result.exception, Qua2SeDiMoError) and "10 bytes" in result.exception.message
    assert len(study.workspace.records.all("candidate")) == before


def test_an_objective_instead_of_a_size_gives_every_block_its_best(study: Study, run: Run, tmp_path: Path) -> None:
    for price, text in ((0, "psnr"), (40, "psnr - 40*bits")):
        result = run("choose", str(study.folder), "--objective", text)
        assert result.exit_code == 0, result.output
        choice = Choice.load(objective_path(study.workspace, text))
        assert (
            study.workspace.identity in choice.owner
            and choice.objective == text
            and choice.nbytes == study.workspace.space.nbytes(choice.configuration)
        )
        assert {c.origin for c in choice.candidates} <= {"each block's best", "each layer's best"}
        best = max(choice.candidates, key=lambda c: c.measured["psnr"] - price * c.average_bits)
        assert f"{text} predicted" in result.output and f"{text} measured" in result.output
        assert f"{best.measured['psnr'] - price * best.average_bits:.2f}" in result.output
        assert best.configuration == choice.configuration
    free, dear = (Choice.load(objective_path(study.workspace, t)) for t in ("psnr", "psnr - 40*bits"))
    assert dear.average_bits < free.average_bits
    assert (
        run(
            "export", str(study.folder), str(tmp_path / "out"), "--choice", objective_path(study.workspace, "psnr").stem
        ).exit_code
        == 0
    )


@pytest.mark.parametrize("more", [["--bits", "3"], ["--keep", "*"], ["--why"]])
def test_an_objective_takes_no_size_and_no_constraint(study: Study, run: Run, more: list[str]) -> None:
    refused = run("choose", str(study.folder), "--objective", "psnr - bits", *more).exception
    assert isinstance(refused, Qua2SeDiMoError) and "no size" in refused.message
    unknown = run("choose", str(study.folder), "--objective", "psnr - bitz").exception
    assert isinstance(unknown, Qua2SeDiMoError) and "bitz" in unknown.message
    unmeasured = run("choose", str(study.folder), "--objective", "ssim").exception
    assert isinstance(unmeasured, Qua2SeDiMoError) and "ssim was not measured" in unmeasured.message


def test_whole_blocks_propose_too_unless_constraints_or_the_predictor_say_otherwise(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = Budget(3.9).nbytes(study.workspace.space.weights)
    better, worse = ([[0.0, gain]] for gain in (1.0, -1.0))  # than the least sum of errors
    monkeypatch.setattr("qua2sedimo.predictor.Ensemble.predict", lambda *_: np.array(better))
    (found,) = _of_blocks(study.workspace, nbytes)
    assert study.workspace.space.nbytes(found[0]) <= nbytes and set(found[0]) == set(study.workspace.space.layers)
    assert found[0] in [c for c, _ in propose_candidates(study.workspace, nbytes, 8)]
    limited = propose_candidates(
        study.workspace, nbytes, 8, allow(study.workspace.space, Constraints(methods=("uaq",)))
    )
    assert "predictor, blocks" not in [origin for _, origin in limited]
    monkeypatch.setattr("qua2sedimo.predictor.Ensemble.predict", lambda *_: np.array(worse))
    assert _of_blocks(study.workspace, nbytes) == []


def test_a_choice_of_other_weights_is_not_exported(study: Study, run: Run, tmp_path: Path) -> None:
    choice = study.choose(3.9, candidates=2)
    choice.model_copy(update={"owner": "another study"}).save(study.folder / "choices" / "foreign.json")
    result = run("export", str(study.folder), str(tmp_path / "out"), "--choice", "foreign")
    assert isinstance(result.exception, Qua2SeDiMoError) and "other weights" in result.exception.message


def test_programs_that_need_no_decibels_propose_under_any_objective(tmp_path: Path) -> None:
    settings = small_settings(options=OPTIONS, objective="-features - bits/20", metrics=["features"])
    study = Study.create(tmp_path / "study", settings, small_pipeline())
    study.measure(20)
    study.fit(FitSettings(epochs=20, channels=8, hops=1))
    origins = [
        origin
        for _, origin in propose_candidates(study.workspace, Budget(3.9).nbytes(study.workspace.space.weights), 8)
    ]
    assert {"predictor", "sum of relative errors"} <= set(origins) and "all measurements" not in origins
