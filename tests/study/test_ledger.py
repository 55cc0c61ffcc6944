"""Nothing is judged on an image that something was learned from, whatever is run in whatever order."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import choice_of, small_pipeline
from tests.study.synthetic import Seen, made_up, study_in

import qua2sedimo.statistics.observing as observing
import qua2sedimo.study.evidence as evidence_module
from qua2sedimo import Qua2SeDiMoError, Study, StudySettings
from qua2sedimo.images.ledger import LEARNING, OBSERVED, USE_OF_ROLE, USES, check_use
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.predictor import FitSettings
from qua2sedimo.study.stages import choose, fit, search

FIT = FitSettings(epochs=2, channels=4, hops=1)
SIZES = st.sampled_from([3.1, 3.3, 4.0])
COMMANDS = st.one_of(
    st.tuples(st.just("measure"), st.integers(20, 26)),
    st.tuples(st.just("search"), SIZES, st.sampled_from([64, 150, 400])),
    st.tuples(st.just("choose"), SIZES),
    st.tuples(st.just("frontier"), st.sampled_from([2, 16, 40])),
    st.tuples(st.just("report"), SIZES, st.sampled_from([8, 96])),
    st.tuples(st.just("observe")),
    st.tuples(st.just("quick"), SIZES),
    st.tuples(st.just("polish")),
)


def numbers(ranges: list[range]) -> set[int]:
    return {i for images in ranges for i in images}


def test_uses_do_not_overlap_and_every_role_has_one() -> None:
    blocks = sorted((use.first, use.first + use.size) for use in USES)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(blocks))
    assert {role for role, use in USE_OF_ROLE.items() if use.learns} == {"sample", "single", "round"}


@given(st.sampled_from(USES), st.integers(0, 200_000), st.integers(1, 200_000))
def test_a_use_gives_only_images_of_its_own_and_refuses_others(use: Any, skip: int, count: int) -> None:
    if skip + count > use.size:
        with pytest.raises(Qua2SeDiMoError, match="images requested"):
            use.images(count, skip)
    else:
        images = use.images(count, skip)
        assert len(images) == count and images[0] in use and images[-1] in use
        assert not any(i in other for other in USES if other is not use for i in (images[0], images[-1]))


def test_a_role_is_never_measured_on_images_of_another_use() -> None:
    check_use("round", range(28, 32))
    for role, images in (("candidate", range(16, 48)), ("final", range(4)), ("sample", range(9_999, 10_001))):
        with pytest.raises(Qua2SeDiMoError, match="are not for"):
            check_use(role, images)


def test_more_images_a_configuration_than_there_are_to_learn_from_are_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 10000"):
        StudySettings(model="m", images=LEARNING.size + 1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_in(tmp_path_factory.mktemp("ledger") / "study").folder


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The images behind every number that a damage model or a predictor was fitted to, or that was observed."""
    ranges: list[range] = []
    plain_record = observing.record_calls

    def record_calls(generator: Any, denoiser: Any, images: range, *more: Any) -> Any:
        ranges.append(images)
        return plain_record(generator, denoiser, images, *more)

    monkeypatch.setattr(observing, "record_calls", record_calls)
    plain_measured, plain_data = evidence_module.Measured, fit.training_data

    def measured(kind: int, configuration: Any, quality: float, images: tuple[int, int]) -> Any:
        ranges.append(range(images[0], images[0] + images[1]))
        return plain_measured(kind, configuration, quality, images)

    def training_data(study: Any, records: Any) -> Any:
        ranges.extend(range(r.measurement.start, r.measurement.start + r.measurement.images) for r in records)
        return plain_data(study, records)

    monkeypatch.setattr(evidence_module, "Measured", measured)
    for module in (fit, choose):
        monkeypatch.setattr(module, "training_data", training_data)
    monkeypatch.setattr(search, "fit", lambda study, **more: fit.fit(study, FIT, **more))
    return ranges


#: Any images a configuration, and any commands in any order.
ANY = {
    "images": st.sampled_from([2, 5, 16, 40, 3_000]),
    "commands": st.lists(COMMANDS, min_size=2, max_size=5),
}
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=5, **QUIET)
@given(**ANY)
def test_nothing_is_judged_on_an_image_that_something_was_learned_from(
    template: Path, learned: list[range], monkeypatch: pytest.MonkeyPatch, images: int, commands: list[tuple]
) -> None:
    check(template, learned, monkeypatch, images, commands)


@pytest.mark.slow
@settings(max_examples=100, **QUIET)
@given(**ANY)
def test_nothing_is_judged_on_an_image_that_something_was_learned_from_in_many_orders(
    template: Path, learned: list[range], monkeypatch: pytest.MonkeyPatch, images: int, commands: list[tuple]
) -> None:
    check(template, learned, monkeypatch, images, commands)


def check(
    template: Path, learned: list[range], monkeypatch: pytest.MonkeyPatch, images: int, commands: list[tuple]
) -> None:  # fmt: skip
    learned.clear()
    seen, final_checks = made_up(monkeypatch), measured_for_polishing(monkeypatch)
    with tempfile.TemporaryDirectory() as folder:
        study = begun(template, Path(folder) / "study", images)
        for command, *arguments in commands:
            run(study, command, *arguments)
        judged = [
            range(r.measurement.start, r.measurement.start + r.measurement.images)
            for r in study.workspace.records.all()
            if not USE_OF_ROLE[r.role].learns
        ]
    judged += [painted for what, _, painted in seen.jobs if what == "paint"]
    judged += [checked for checked in final_checks if checked[0] not in LEARNING]
    assert not numbers(learned) & numbers(judged)
    observed = {i for i in numbers(learned) if i in OBSERVED}
    assert not observed & numbers([*judged, *final_checks, *(images for _, _, images in seen.jobs)])


def measured_for_polishing(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The images that quick choices and polished ones are measured on, in this process."""
    ranges: list[range] = []
    plain = Measurer.__call__

    def measuring(self: Measurer, *arguments: Any) -> Any:
        ranges.append(self.images)
        return plain(self, *arguments)

    monkeypatch.setattr(Measurer, "__call__", measuring)
    return ranges


def begun(template: Path, folder: Path, images: int) -> Study:
    shutil.copytree(template, folder)
    asked = StudySettings.load(folder / "study.yaml").model_copy(update={"images": images})
    asked.save(folder / "study.yaml")
    return Study(folder, small_pipeline())


def run(study: Study, command: str, *arguments: Any) -> None:
    """A command as people run it: one that needs another, or more images than are asked for, says so."""
    try:
        if command == "measure":
            study.measure(*arguments)
        elif command == "search":
            study.search(*arguments)
        elif command == "choose":
            study.measure(20)
            study.fit(FIT)
            study.choose(*arguments)
        elif command == "frontier":
            study.frontier(images=arguments[0])
        elif command == "observe":
            shutil.rmtree(study.folder / "statistics", ignore_errors=True)
            Study(study.folder, study.workspace.pipeline).observe()
        elif command == "quick":
            study.quick(*arguments)
        elif command == "polish":
            study.polish(choice_of(study, study.workspace.space.decode([0] * len(study.workspace.space.layers))))
        else:
            bits, compared = arguments
            study.measure(20)
            study.fit(FIT)
            study.compare(study.choose(bits), study.folder / "packed", compared)
    except Qua2SeDiMoError as refusal:
        assert refusal.remedy, refusal


def test_every_command_of_the_property_does_measure(
    template: Path, learned: list[range], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The property is not true because nothing happens."""
    seen: Seen = made_up(monkeypatch)
    study = begun(template, tmp_path / "study", 16)
    for command in (("measure", 20), ("choose", 3.3), ("frontier", 4), ("search", 3.1, 700), ("report", 3.3, 8)):
        before = len(seen.jobs)
        run(study, *command)
        assert len(seen.jobs) > before, command
    checked = measured_for_polishing(monkeypatch)
    for command in (("quick", 4.0), ("polish",)):
        before = len(checked)
        run(study, *command)
        assert len(checked) >= before + 3, command
    before = len(learned)
    run(study, "observe")
    assert learned[before:] and learned[-1][0] in OBSERVED
    roles = {r.role for r in study.workspace.records.all()}
    assert roles == {"sample", "single", "round", "final", "frontier", "candidate"}
    assert learned
