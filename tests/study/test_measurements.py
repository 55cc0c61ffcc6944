"""What was measured is kept once, paid once, and paired with what rests on it; budgets of images are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.study.synthetic import Seen, made_up, study_in

from qua2sedimo import Choice, Qua2SeDiMoError, Study
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import FitSettings
from qua2sedimo.records import Record
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.report.fill.predictor import predictor_quality
from qua2sedimo.search import Budget, Constraints
from qua2sedimo.study.measurements import _joined, images_spent, measure_all
from qua2sedimo.study.stages.compare import KeptRow
from qua2sedimo.study.stages.explain import sensitivity
from qua2sedimo.study.stages.fit import samples_since

FIT = FitSettings(epochs=4, channels=4, hops=1)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return made_up(monkeypatch)


@pytest.fixture
def study(seen: Seen, tmp_path: Path) -> Study:
    return study_in(tmp_path / "study", images=16)


# Images are paid once ----------------------------------------------------------------------------------------------


def test_a_frontier_on_more_images_measures_only_the_others_and_keeps_them(study: Study, seen: Seen) -> None:
    first = study.frontier(images=16)
    before = seen.images("measure")
    more = study.frontier(images=32)
    points = len({p.configuration for p in more})
    assert seen.images("measure") - before == 16 * points
    assert all(p.quality.images == 32 for p in more) and len(first) == len(more)
    before = seen.images("measure")
    assert study.frontier(images=32) == more and seen.images("measure") == before
    fewer = study.frontier(images=16)
    assert seen.images("measure") == before and [p.quality for p in fewer] == [p.quality for p in first]


@pytest.mark.parametrize("spans", [[(0, 4)], [(0, 2), (2, 4)], [(2, 4)], [(0, 3), (1, 4)], [(1, 3)], [(0, 9)], []])
def test_images_in_pieces_are_as_if_measured_at_once(
    study: Study, seen: Seen, spans: list[tuple[int, int]]
) -> None:  # fmt: skip
    uniform = study.workspace.space.uniform(study.workspace.space.options[study.workspace.space.layers[0]][0])
    for start, stop in spans:
        measure_all(study.workspace, "round", [uniform], range(start, stop), "in pieces")
    before = seen.images("measure")
    (found,) = measure_all(study.workspace, "round", [uniform], range(4), "at once")
    known = {i for start, stop in spans for i in range(start, stop)}
    assert seen.images("measure") - before == len(set(range(4)) - known)
    values = {i: v for start in range(9) for i, v in [(start, _value(study, uniform, start))]}
    assert found is not None and found.values["psnr"] == [values[i] for i in range(4)]


def _value(study: Study, configuration: Configuration, image: int) -> float:
    from tests.study.synthetic import measured

    return measured(study.workspace, configuration, range(image, image + 1))["values"]["psnr"][0]


def test_joined_images_that_lack_one_are_nothing() -> None:
    one = Record("round", 0, Configuration({}), 16.0, Measurement(0, {"psnr": [1.0, 2.0]}, 1.0))
    assert _joined([one], range(3)) is None and _joined([one], range(1, 2)) == Measurement(1, {"psnr": [2.0]}, 1.0)


# A search keeps to its images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [64, 100, 150, 231, 400])
def test_a_search_never_spends_more_images_than_it_was_given(study: Study, images: int) -> None:
    study.measure(12)  # 192 images
    spent = images_spent(study.workspace)
    try:
        study.search(3.3, images)
    except Qua2SeDiMoError as refusal:
        assert images < spent + 32 and "fewer than this search needs" in refusal.message
        assert images_spent(study.workspace) == spent and refusal.remedy
        least = int(refusal.remedy.split("--image-budget ")[1].split()[0])
        study.search(3.3, least)  # what is named as the least is enough
        assert images_spent(study.workspace) <= least
    else:
        assert images_spent(study.workspace) <= images


def test_a_search_stopped_in_its_finals_may_still_be_finished(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("finalists") and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.search(3.3, 120, stop)
    found = study.search(3.3, 120)
    assert images_spent(study.workspace) <= 120 and found.choice.images == 120


# Choices are found again by what was asked -------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3.3, 3.1, 10 / 3, 3.2999999])
def test_the_choice_of_a_search_is_found_by_its_bits(study: Study, bits: float) -> None:
    made = study.search(bits, 120).choice
    assert made.budget == Budget(bits) and made.bits_asked == bits
    assert made.budget_bytes == Budget(bits).nbytes(study.workspace.space.weights)
    assert study.workspace.choice_for(bits) == made
    assert Study(study.folder, study.workspace.pipeline).workspace.choice_for(bits) == made


def test_a_constrained_choice_is_never_shown_for_its_bits_and_explains_itself(study: Study) -> None:
    limits = Constraints(methods=("uaq",))
    made = study.search(3.3, 120, constraints=limits).choice
    assert study.workspace.choice_for(3.3) is None
    free = study.search(3.3, 240).choice
    assert study.workspace.choice_for(3.3) == free != made
    kept = Choice.load(study.workspace.choice_path(Budget(3.3), limits))
    assert kept.constraints == limits and kept.budget == Budget(3.3)
    assert {c.name for c in study.workspace.choices()} == {made.name, free.name}


def test_choices_of_the_first_format_are_read_with_their_exact_budget(study: Study) -> None:
    made = study.search(3.3, 120).choice
    path = study.workspace.choice_path(Budget(3.3))
    old = first_format(made, study)
    path.write_text(json.dumps(old))
    found = Choice.load(path)
    assert found.budget == Budget(3.3) and found.budget_bytes == made.budget_bytes
    assert found.model_copy(update={"judged_on": made.judged_on}) == made
    assert study.workspace.choice_for(3.3) == found
    constrained = study.workspace.choice_path(Budget(3.3), Constraints(methods=("uaq",)))
    constrained.write_text(json.dumps(old))
    with pytest.raises(Qua2SeDiMoError, match="does not record its constraints") as caught:
        Choice.load(constrained)
    assert caught.value.remedy and "delete" not in caught.value.remedy.lower()


def first_format(choice: Choice, study: Study) -> dict[str, Any]:
    """As the first version wrote it: a search's bits come from whole bytes."""
    content = json.loads(choice.model_dump_json())
    for name in ("budget", "budget_bytes", "constraints", "objective", "judged_on"):
        content.pop(name)
    return {**content, "format": 1, "bits_asked": 8 * choice.budget_bytes / study.workspace.space.weights}


# A predictor is paired with the records it was fitted to -----------------------------------------------------------


def test_a_record_that_comes_back_changes_nothing_of_what_a_fit_says_of_itself(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.measure(40)
    records = study.workspace.records
    gone = records.all("sample")[3]
    with records._transaction() as db:  # as if it had failed
        db.execute("DELETE FROM measurements WHERE role = 'sample' AND number = 3")
    study.fit(FIT)
    before, costs = predictor_quality(study.workspace), sensitivity(study.workspace).effects
    study.measure(40, again=True)
    assert gone.configuration in [r.configuration for r in records.all("sample")]
    again = predictor_quality(study.workspace)
    assert again.pairs == before.pairs and again.rank_correlation == before.rank_correlation
    assert sensitivity(study.workspace).effects == costs
    from qua2sedimo.study.stages.fit import fitted

    assert samples_since(study.workspace, fitted(study.workspace)[0]) == 1


def test_a_predictor_whose_records_are_gone_is_refused(study: Study) -> None:
    study.measure(24)
    study.fit(FIT)
    with study.workspace.records._transaction() as db:
        db.execute("DELETE FROM measurements WHERE role = 'sample' AND number = 3")
    for use in (predictor_quality, sensitivity):
        with pytest.raises(Qua2SeDiMoError, match="does not hold any more") as caught:
            use(study.workspace)
        assert "qua2sedimo fit" in str(caught.value.remedy)


def test_a_candidate_that_cannot_be_measured_is_left_out_and_recorded(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qua2sedimo.study.worker as worker

    plain = worker.work_of
    unlucky: list[str] = []

    def work_of(opened: Any) -> Any:
        work = plain(opened)

        def fails(content: str) -> str:
            job = json.loads(content)
            if job["do"] == "measure" and job["start"] >= 10_000:
                unlucky[:] = unlucky or [job["configuration"]]
                if job["configuration"] == unlucky[0]:
                    raise MemoryError("too large")
            return work(content)

        return fails

    monkeypatch.setattr(worker, "work_of", work_of)
    choice = study.search(3.3, 300).choice
    (failure,) = study.workspace.records.failed("final")
    assert failure.error == "MemoryError: too large" and failure.configuration.to_json() == unlucky[0]
    assert failure.configuration not in [c.configuration for c in choice.candidates]
    assert np.isfinite(choice.measured["psnr"])


def test_a_compared_row_of_the_first_version_is_read(study: Study, tmp_path: Path) -> None:
    estimate = {"value": 20.0, "low": 19.0, "high": 21.0, "images": 8}
    old = {"key": ["space-weights", "protocol", 8, "digest"], "metrics": {"psnr": estimate}}
    (tmp_path / "row.json").write_text(json.dumps(old))
    kept = KeptRow.load(tmp_path / "row.json")
    assert (kept.identity, kept.protocol, kept.images, kept.digest) == ("space-weights", "protocol", 8, "digest")
    assert kept.metrics == {"psnr": Estimate(20.0, 19.0, 21.0, 8)}
    kept.save(tmp_path / "again.json")
    assert KeptRow.load(tmp_path / "again.json") == kept
    (tmp_path / "row.json").write_text(json.dumps({**old, "more": 1, "format": 2}))
    with pytest.raises(Qua2SeDiMoError, match=r"row\.json is damaged"):
        KeptRow.load(tmp_path / "row.json")
