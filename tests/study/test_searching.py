"""Searching and the frontier, on a denoiser of 8×8 pixels: budgets kept, images kept, goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import small_pipeline, small_settings
from tests.study.synthetic import made_up, study_in
from typer.testing import CliRunner

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.cli import app
from qua2sedimo.images.ledger import FINALS
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.run import Crew
from qua2sedimo.measuring.workers import Job, Outcome
from qua2sedimo.metrics.distances import psnr
from qua2sedimo.options import Configuration
from qua2sedimo.report.charts.quality import quality_against_bits
from qua2sedimo.report.fill.study import _commands, frontier_points, objective_info
from qua2sedimo.report.paper.files import write_frontier
from qua2sedimo.search import Budget, Constraints, best_configurations, by_gradients
from qua2sedimo.study.evidence import FEW, evidence, measure_singles
from qua2sedimo.study.measurements import images_spent
from qua2sedimo.study.stages.fit import fitted
from qua2sedimo.study.stages.frontier import Point, frontier, load_frontier, named_choice
from qua2sedimo.study.stages.search import Found, least_images
from qua2sedimo.study.stages.search_log import SearchLog

BITS, IMAGES = 3.6, 260
OPTIONS = "uaq-2,uaq-4,kmeans_a-2,kmeans_a-3,kmeans_a-6"


def made(folder: Path) -> Study:
    study = Study.create(folder, small_settings(options=OPTIONS), small_pipeline())
    study.quantize()
    return study


@dataclass(frozen=True)
class Finished:
    study: Study
    found: Found
    points: list[Point]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    study = made(tmp_path_factory.mktemp("search") / "study")
    found = study.search(BITS, IMAGES)
    return Finished(study, found, frontier(study.workspace, (2.5, 3.0, 4.0), images=4))


def test_a_search_keeps_to_its_size_and_to_its_images(finished: Finished) -> None:
    study, choice = finished.study, finished.found.choice
    assert choice.average_bits <= BITS and choice.nbytes == study.workspace.space.nbytes(choice.configuration)
    assert images_spent(study.workspace) - images_spent(study.workspace, "frontier") <= IMAGES
    roles = {r.role for r in study.workspace.records.all()}
    assert {"single", "round", "final"} <= roles


def test_all_stages_at_once_search_then_fit_and_measure_nothing_again(tmp_path: Path) -> None:
    study = made(tmp_path / "study")
    choice = study.run(BITS, 20)
    spent, each = images_spent(study.workspace), 20 * study.workspace.settings.images
    assert choice.origin == "search" and choice.average_bits <= BITS
    assert each < spent <= max(3 * each, least_images())
    assert fitted(study.workspace)[0] is not None and study.explain().total()
    assert study.run(BITS, 20) == choice and images_spent(study.workspace) == spent
    assert study.run(BITS) == choice  # without asking for more, what was found with more effort stays
    assert f"qua2sedimo search study --bits {BITS} --image-budget {max(3 * each, least_images())}" in _commands(
        study.workspace, choice
    )
    other = study.run(3.0, 20)  # the images of the first search are no reason to spend none on the second
    assert other.average_bits <= 3.0 and images_spent(study.workspace) > spent


def test_all_stages_at_once_choose_by_the_predictor_where_no_search_can(tmp_path: Path) -> None:
    settings = small_settings(options=OPTIONS, objective="-latent_mse", metrics=["latent_mse"])
    study = Study.create(tmp_path / "study", settings, small_pipeline())
    choice = study.run(BITS, 20)
    assert choice.origin != "search" and choice.average_bits <= BITS
    assert {r.role for r in study.workspace.records.all()} == {"sample", "candidate"}


def test_every_layer_is_measured_alone_the_others_in_16_bits(finished: Finished) -> None:
    singles = finished.study.workspace.records.all("single")
    assert [set(r.configuration) for r in singles] == [{n} for n in finished.study.workspace.space.layers]
    assert all(10 < r.average_bits < 16 or len(finished.study.workspace.space.layers) < 3 for r in singles)
    study = finished.study
    study.workspace.switch.restore()
    study.workspace.switch.apply(singles[3].configuration)
    images = study.workspace.generator(0, FEW)
    study.workspace.switch.restore()
    full = study.workspace.generator(0, FEW)
    assert list(psnr(images, full)) == pytest.approx(singles[3].measurement.values["psnr"], abs=1e-2)


def test_who_wins_is_decided_on_images_that_nothing_was_learned_from(finished: Finished) -> None:
    records, space = finished.study.workspace.records.all(), finished.study.workspace.space
    finals = [r for r in records if r.role == "final"]
    assert all(r.measurement.start in FINALS for r in finals)
    values: dict[Configuration, list[float]] = {}
    for r in finals:
        values.setdefault(r.configuration, []).extend(r.measurement.values["psnr"])
    most = max(map(len, values.values()))
    longest = {c: sum(v) / len(v) for c, v in values.items() if len(v) == most}
    choice, compared = finished.found.choice, finished.found.compared
    assert len(longest) >= 2
    winner = max(longest, key=longest.__getitem__)
    if compared is None or compared.gain >= 0:
        assert choice.configuration == winner
    else:
        assert choice.configuration == next(
            best_configurations(space, by_gradients(finished.study.workspace.unmeasured), choice.budget_bytes, 1)
        )
    learned = {i for r in records if r.role != "final" for i in range(r.measurement.start, r.measurement.images)}
    at = next(n for n in (16, 48) if compared is None or n == compared.images)
    fresh = FINALS.images(at, skip=1_000)
    assert not learned & set(fresh) and not {r.measurement.start for r in finals} & set(fresh)
    inside = Study(finished.study.folder, small_pipeline()).workspace
    polished = inside.polished_values(choice) if choice.polished else {}
    again = inside.measurer(fresh)(choice.configuration, polished).means
    assert choice.measured["psnr"] == pytest.approx(again["psnr"], abs=1e-3)


def test_the_command_goes_on_tells_why_and_where_the_choice_is(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qua2sedimo.study.model.load_pipeline", lambda *_: small_pipeline())
    folder, spent = finished.study.folder, images_spent(finished.study.workspace)
    result = CliRunner().invoke(
        app,
        ["search", str(folder), "--bits", str(BITS), "--image-budget", str(IMAGES), "--why"],
        env={"COLUMNS": "200"},
    )
    assert result.exit_code == 0, result.output
    assert "next cheaper" in result.output and "bytes, dB" in result.output
    assert str(folder / "choices" / f"{BITS}.json") in result.output
    assert f"qua2sedimo export {folder} OUT --choice {BITS}" in result.output
    assert images_spent(finished.study.workspace) == spent


def test_rounds_improve_on_what_layers_alone_propose(finished: Finished) -> None:
    first, last = finished.found.rounds[0], finished.found.rounds[-1]
    assert last.spent > first.spent
    known = evidence(finished.study.workspace)
    own = [m.configuration for m in known.measured if m.kind == 2]
    assert last.best == pytest.approx(max(known.predicted(own)))


def test_candidates_take_turns_on_sets_of_images_and_no_image_of_the_finals_is_among_them(finished: Finished) -> None:
    starts = [r.measurement.start for r in finished.study.workspace.records.all("round")]
    assert len(starts) >= 16 and set(starts) == set(range(0, 8 * FEW, FEW))


def test_with_fewer_images_than_layers_alone_take_rounds_start_from_what_is_believed(tmp_path: Path) -> None:
    study = made(tmp_path / "study")
    found = study.search(BITS, 70)
    assert study.workspace.records.all("single") == [] and found.choice.average_bits <= BITS
    assert images_spent(study.workspace) <= 70


def test_run_again_it_measures_nothing_and_answers_the_same(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(finished.study.folder, tmp_path / "copy")
    monkeypatch.setattr(Measurer, "__call__", lambda *_: pytest.fail("measured before"))
    again = Study(tmp_path / "copy", small_pipeline()).search(BITS, IMAGES)
    assert again.choice == finished.found.choice


def essence(study: Study) -> set[tuple[Any, ...]]:
    """What was measured, without numbers, seconds and who did it."""
    records = study.workspace.records.all()
    return {(r.role, r.configuration, r.measurement.start, tuple(r.measurement.values["psnr"])) for r in records}


@pytest.mark.parametrize("workers", [1, 3], ids=["here", "as three workers would"])
def test_stopped_ten_times_it_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Also where workers finish jobs in another order than they were given, so that those in between are missing."""
    made_up(monkeypatch)
    whole = study_in(tmp_path / "whole")
    shutil.copytree(whole.folder, tmp_path / "stopped")
    expected = whole.search(BITS, IMAGES)
    done_now = Crew.do
    left = 0

    def interrupted(self: Crew, jobs: Iterable[Job], stop: Callable[[], bool]) -> Iterator[Outcome]:
        nonlocal left
        outcomes = done_now(self, jobs, stop)
        while batch := list(islice(outcomes, workers)):
            for outcome in reversed(batch):
                left -= '"measure"' in outcome.job.content
                if left < 0:
                    raise KeyboardInterrupt
                yield outcome

    monkeypatch.setattr(Crew, "do", interrupted)
    stopped, found = 0, None
    while found is None:
        left = 4
        try:
            found = Study(tmp_path / "stopped", small_pipeline()).search(BITS, IMAGES)
        except KeyboardInterrupt:
            stopped += 1
    assert stopped >= 9
    assert found.choice == expected.choice
    assert str(found.rounds) == str(expected.rounds)  # NaN is not equal to itself
    assert essence(Study(tmp_path / "stopped", small_pipeline())) == essence(whole)


@pytest.mark.slow
def test_all_stages_stopped_in_the_search_end_as_they_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch)
    monkeypatch.setattr("qua2sedimo.study.stages.search.fit", lambda *_, **__: None)
    whole = study_in(tmp_path / "whole")
    shutil.copytree(whole.folder, tmp_path / "stopped")
    expected = whole.run(BITS, 20)

    def stop_in(stage: str) -> Callable[[int, int, str], None]:
        def stop(done: int, total: int, what: str) -> None:
            if stage in what and done == 1:
                raise KeyboardInterrupt

        return stop

    for stage in ("round", "finalists"):
        with pytest.raises(KeyboardInterrupt):
            Study(tmp_path / "stopped", small_pipeline()).run(BITS, 20, stop_in(stage))
    assert Study(tmp_path / "stopped", small_pipeline()).run(BITS, 20) == expected


def test_a_search_with_another_number_of_images_is_another_search(finished: Finished, tmp_path: Path) -> None:
    log = SearchLog.load(finished.study.folder / "search" / f"{BITS}.json")
    assert log.images == IMAGES and log.rounds_ended and log.finals is not None
    shutil.copytree(finished.study.folder, tmp_path / "copy")
    study = Study(tmp_path / "copy", small_pipeline())
    assert study.search(BITS, IMAGES + 40).choice.images == IMAGES + 40
    assert images_spent(study.workspace, "round") >= images_spent(finished.study.workspace, "round")


def test_a_search_obeys_constraints_and_kept_layers_count_16_bits(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.study.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("choices"))
    study = Study(tmp_path / "copy", small_pipeline())
    last = study.workspace.space.layers[-1]
    found = study.search(4.0, IMAGES + 200, constraints=Constraints(keep=(last,), methods=("kmeans_a",)))
    chosen = found.choice.configuration
    assert last not in chosen and {o.method for o in chosen.values()} == {"kmeans_a"}
    assert (
        found.choice.nbytes == study.workspace.space.nbytes(chosen) <= Budget(4.0).nbytes(study.workspace.space.weights)
    )
    packed = study.export(found.choice, tmp_path / "packed")
    assert packed.quantized_bytes + 2 * study.workspace.graph.layers[last].weights == found.choice.nbytes


def test_too_few_images_are_refused_with_the_least(finished: Finished) -> None:
    with pytest.raises(Qua2SeDiMoError, match="too few to search") as caught:
        finished.study.search(BITS, 10)
    assert "are the least" in str(caught.value.remedy)


def test_an_objective_without_decibels_is_refused(tmp_path: Path) -> None:
    asked = small_settings(options=OPTIONS, objective="features", metrics=["features"])
    study = Study.create(tmp_path / "study", asked, small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match="needs one in decibels"):
        study.search(BITS, IMAGES)


def test_an_objective_may_be_shares_of_several_metrics_in_decibels(tmp_path: Path) -> None:
    both = "0.5*psnr + 0.5*features_db"
    study = Study.create(tmp_path / "study", small_settings(options=OPTIONS, objective=both), small_pipeline())
    study.quantize()
    choice = study.search(BITS, 70).choice
    assert {"psnr", "features_db"} <= set(choice.measured) and choice.average_bits <= BITS
    other = next(c for c in choice.candidates if c.configuration != choice.configuration and c.origin != "gradients")
    finals = [r for r in study.workspace.records.all("final") if r.configuration == other.configuration]
    values = [v for r in finals for v in study.workspace.objective.of_images(r.measurement.values)]
    assert study.workspace.objective.of(other.measured, choice.average_bits) == pytest.approx(sum(values) / len(values))


def test_layers_alone_are_measured_once(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurer, "__call__", lambda *_: pytest.fail("measured before"))
    assert len(measure_singles(finished.study.workspace)) == len(finished.study.workspace.space.layers)


# The frontier ------------------------------------------------------------------------------------------------------


def test_no_point_of_the_frontier_is_beaten_and_every_other_is(finished: Finished) -> None:
    for p in finished.points:
        better = [
            q for q in finished.points
            if q.nbytes <= p.nbytes and q.quality.value >= p.quality.value
            and (q.nbytes, q.quality.value) != (p.nbytes, p.quality.value)
        ]  # fmt: skip
        assert p.efficient == (not better)
    assert {"2.5", "3", "4", f"choice-{BITS}"} <= {p.name for p in finished.points}
    assert all(p.average_bits <= float(p.name) for p in finished.points if p.name[0].isdigit())
    assert all(p.quality.low <= p.quality.value <= p.quality.high and p.quality.images == 4 for p in finished.points)


def test_the_frontier_is_read_as_it_was_written(finished: Finished) -> None:
    assert load_frontier(finished.study.workspace) == finished.points


def test_the_figure_shows_every_point_and_the_line_runs_along_the_frontier(finished: Finished, tmp_path: Path) -> None:
    points, objective = frontier_points(finished.points), objective_info(finished.study.workspace.objective)
    drawn = quality_against_bits(points, objective).to_dict()
    marks, line = (
        next(layer["data"]["values"] for layer in drawn["layer"] if layer["mark"]["type"] == kind)
        for kind in ("point", "line")
    )
    named = {row["about"]: (row["bits"], row["value"]) for row in marks}
    assert named == {p.name: (p.average_bits, p.quality.value) for p in finished.points}
    front = {(row["bits"], row["value"]) for row in line}
    assert front == {(p.average_bits, p.quality.value) for p in finished.points if p.efficient}
    figure = write_frontier(points, objective, tmp_path / "frontier.svg").read_text()
    assert "<svg" in figure and "PSNR (dB), higher is better" in figure and "uniform-uaq-4" in figure


def test_any_point_is_exported_by_its_name(finished: Finished, tmp_path: Path) -> None:
    point = finished.points[0]
    choice = named_choice(finished.study.workspace, None, point.name)
    assert finished.study.export(choice, tmp_path / "out").quantized_bytes == point.nbytes


def test_a_frontier_that_is_absent_damaged_or_lacks_the_point_is_an_error(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="no point 'nope'"):
        named_choice(finished.study.workspace, None, "nope")
    with pytest.raises(Qua2SeDiMoError, match="no choice 'nope'"):
        named_choice(finished.study.workspace, "nope", None)
    shutil.copytree(finished.study.folder, tmp_path / "copy")
    study = Study(tmp_path / "copy", small_pipeline())
    path = study.folder / "frontier.json"
    content = json.loads(path.read_text())
    del content["points"][0]["configuration"]
    path.write_text(json.dumps(content))
    with pytest.raises(Qua2SeDiMoError, match="damaged"):
        load_frontier(study.workspace)
    path.unlink()
    with pytest.raises(Qua2SeDiMoError, match="has no frontier"):
        load_frontier(study.workspace)


def test_two_choices_are_compared_by_a_command(finished: Finished, tmp_path: Path) -> None:
    kept = finished.study.folder / "choices" / f"{BITS}.json"
    content = json.loads(kept.read_text())
    del content["checksum"]  # or it would be refused as changed
    layer = next(iter(content["configuration"]))
    content["configuration"][layer] = "uaq-4" if content["configuration"][layer] != "uaq-4" else "uaq-2"
    (tmp_path / "other.json").write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["diff", str(kept), str(tmp_path / "other.json")], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert layer in result.output and f"1 of {len(content['configuration'])}" in result.output
