"""What a plan says follows from its trial; nothing is recorded by it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.conftest import small_pipeline, small_settings
from typer.testing import CliRunner

from qua2sedimo.bank import Bank
from qua2sedimo.cli import app
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import Generator
from qua2sedimo.measuring.trial import Trial
from qua2sedimo.study import Study
from qua2sedimo.study.stages import plan as plan_stage
from qua2sedimo.study.stages.plan import Plan, gain_of_workers
from qua2sedimo.terminal.plan import plan_tables

PLAN = Plan(
    model="m", configurations=100, measured=20, images=16, batch=8,
    trial=Trial(bare=9.0, total=10.0, switch=0.4, generate=9.1, overhead=0.11, images=16),
    observe=5.0,
    load=1.0, quantize=90.0, workers={1: 800.0, 2: 500.0, 3: 500.0, 4: 500.0}, memory=10**9, kept_weights=0,
    statistics=10**6, bank=3 * 10**6, disk=5 * 10**6, device="cpu", cores=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    settings = small_settings(options="uaq-3,uaq-4,kmeans_a-2")
    return Study.create(tmp_path_factory.mktemp("plan") / "study", settings, small_pipeline())


def test_a_plan_without_a_bank_tries_on_a_few_layers_and_leaves_nothing_behind(study: Study) -> None:
    before = {name: t.clone() for name, t in study.workspace.denoiser.state_dict().items()}
    made = study.plan(30)
    assert not (study.folder / "bank").exists() and not (study.folder / "records.db").exists()
    assert all(torch.equal(before[name], t) for name, t in study.workspace.denoiser.state_dict().items())
    assert made.quantize > 0 and made.left == 30 and made.batch == 2
    assert made.workers[1] == pytest.approx(30 * made.trial.total)
    assert made.trial.total >= made.trial.generate > 0 and made.trial.bare > 0
    assert made.disk > sum(int(b.sum()) for b in study.workspace.space.option_bytes)
    assert made.kept_weights <= 4 * study.workspace.space.weights
    json.dumps(made.document())


def test_where_an_image_takes_long_one_configuration_of_two_images_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_stage, "_SLOW", 0.0)
    study = Study.create(tmp_path / "study", small_settings(images=16, options="uaq-3,uaq-4"), small_pipeline())
    made: list[int] = []
    plain = Generator.run

    def counted(self: Generator, indices: Sequence[int], *more: Any) -> Any:
        made.extend(indices)
        return plain(self, indices, *more)

    monkeypatch.setattr(Generator, "run", counted)
    _ = study.workspace.batch, study.workspace.graph
    made.clear()
    done: list[tuple[int, int]] = []
    found = study.plan(10, progress=lambda at, total, what: done.append((at, total)))
    assert len(made) == 1 + 4 * 2  # one to see how long it takes; full precision, the configuration, and bare ones
    assert set(found.workers.values()) == {found.workers[1]} and found.images == found.trial.images == 16
    assert done[-1] == (1, 1) and done[0][0] == 0


def test_a_trial_of_few_images_and_layers_stands_for_all() -> None:
    few = Trial(bare=2.0, total=2.6, switch=0.1, generate=2.2, overhead=0.3, images=2, quartiles=(0.2, 0.4))
    every = few.of_all(16, share=0.1)
    assert every.bare == 16 and every.switch == pytest.approx(1.0) and every.generate == pytest.approx(17.6)
    assert every.total == pytest.approx(8 * 2.5 + 1.0)
    assert every.overhead == pytest.approx(every.total / every.bare - 1)
    assert every.quartiles[1] - every.quartiles[0] == pytest.approx(0.2)
    assert few.of_all(2, 1.0) == few


def test_with_a_bank_and_records_only_the_rest_is_planned(study: Study) -> None:
    study.measure(3)
    made = study.plan(5)
    assert made.quantize == 0 and made.measured == 3 and made.left == 2
    assert study.plan(2).workers == dict.fromkeys((1, 2, 3, 4), 0.0)
    assert len(study.workspace.records.all()) == 3


def test_what_a_killed_plan_left_is_removed_by_the_next(study: Study, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Its trial's bank takes as much room as some layers of the model: nobody would look for it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    small = Study.create(tmp_path / "study", small_settings(options="uaq-3,uaq-4"), small_pipeline())

    def dying() -> None:
        monkeypatch.setattr(Bank, "build", lambda folder, *_, **__: (folder / "0.tmp").touch() or time.sleep(60))
        small.plan(20)

    victim = multiprocessing.get_context("fork").Process(target=dying)
    victim.start()
    while not list(tmp_path.glob("*/0.tmp")):
        time.sleep(0.01)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    left = next(tmp_path.glob("*/0.tmp")).parent
    assert left.stat().st_mode & 0o777 == 0o700
    small.plan(20)
    assert {path.name for path in tmp_path.iterdir()} == {"study"}


def test_a_plan_and_a_refusal_observe_nothing(tmp_path: Path) -> None:
    """Statistics cost images: what only looks, or refuses, does not make them."""
    study = Study.create(tmp_path / "s", small_settings(), small_pipeline())
    made = study.plan(30)
    assert made.quantize > 0 and made.left == 30
    with pytest.raises(Qua2SeDiMoError, match="no predictor"):
        Study(tmp_path / "s", small_pipeline()).choose(3.5)
    with pytest.raises(Qua2SeDiMoError, match="as small as"):
        Study(tmp_path / "s", small_pipeline()).search(0.01, 100)
    assert not (tmp_path / "s" / "statistics").exists() and not (tmp_path / "s" / "bank").exists()


def test_more_than_the_sampler_has_is_refused(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", small_settings(sampler="singles", options="uaq-4"), small_pipeline())
    count = len(study.workspace.space.layers)
    with pytest.raises(Qua2SeDiMoError, match=f"'singles' has {count} configurations, {count + 1} were asked for"):
        study.plan(count + 1)
    with pytest.raises(Qua2SeDiMoError, match="'singles' has"):
        study.measure(count + 1)


def test_single_layers_are_measured_with_all_others_in_full_precision(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", small_settings(sampler="singles", options="uaq-2"), small_pipeline())
    records = study.measure(3)
    assert [len(r.configuration) for r in records] == [1, 1, 1]
    assert all(14 < r.average_bits < 16 for r in records)


def test_a_list_is_measured_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.json").write_text('[{"*": "uaq-4"}, {"*": "uaq-3", "proj_out_2": "uaq-4"}]')
    settings = small_settings(sampler="list", configurations="mine.json", options="uaq-3,uaq-4")
    study = Study.create(tmp_path / "s", settings, small_pipeline())
    first, second = study.measure(2)
    assert set(map(str, first.configuration.values())) == {"uaq-4"}
    assert str(second.configuration["proj_out_2"]) == "uaq-4" and second.average_bits < first.average_bits


def test_the_batch_once_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.create(tmp_path / "s", small_settings(images=6), small_pipeline())
    assert study.workspace.batch == 6
    (study.folder / "batch.json").write_text("3")
    assert Study(study.folder, small_pipeline()).workspace.generator.generation.batch == 3
    (study.folder / "batch.json").write_text('"many"')
    with pytest.raises(Qua2SeDiMoError, match=r"batch\.json: format str is not 1"):
        _ = Study(study.folder, small_pipeline()).workspace.batch


@pytest.mark.parametrize(
    ("workers", "cores", "threads", "alone", "every", "gain"),
    [
        (1, 8, 8, 8.0, 1.0, 1.0),
        (4, 8, 8, 8.0, 1.0, 1.0),  # threads are perfect: sharing cores gains nothing
        (4, 8, 8, 1.0, 1.0, 4.0),  # threads are useless: each worker is as fast as one
        (2, 2, 2, 3.0, 2.0, 4 / 3),
        (4, 2, 2, 3.0, 2.0, 4 / 3),  # no more than cores
        (2, 2, 1, 3.0, 3.0, 2.0),  # a core that one worker leaves idle
        (2, 2, 2, 1.9, 2.0, 2.0),  # threads that harm, by chance of timing: no gain is made of it
    ],
)
def test_workers_gain_what_threads_leave(
    workers: int, cores: int, threads: int, alone: float, every: float, gain: float
) -> None:
    assert gain_of_workers(workers, cores, threads, alone, every) == pytest.approx(gain)


def test_fewer_images_take_less_but_switching_stays() -> None:
    assert PLAN.seconds_with(16) == pytest.approx(800)
    assert PLAN.seconds_with(8) == pytest.approx(80 * (0.4 + 9.6 / 2))


def test_the_tables_fit_80_columns_and_say_what_is_left() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for table in plan_tables(PLAN):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("20 measured already", "1,280 images", "13 min 20 s", "1.60×", "+11.0%", "1 min 30 s", "1.00 GB"):
        assert words in text, words
    (one, every) = plan_tables(replace(PLAN, quantize=0.0))
    assert every.row_count == plan_tables(PLAN)[1].row_count - 1 and one.row_count == 5


def test_the_command_prints_the_plan_for_people_and_for_machines(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def planned(opened: Study, configurations: int, **_: object) -> Plan:
        asked.append((opened.folder, configurations))
        return PLAN

    monkeypatch.setattr("qua2sedimo.study.facade.Study.plan", planned)
    printed = CliRunner().invoke(app, ["plan", str(study.folder), "--configurations", "100", "--json"])
    assert json.loads(printed.stdout)["workers"]["2"] == 500.0 and json.loads(printed.stdout)["left"] == 80
    printed = CliRunner().invoke(app, ["plan", str(study.folder), "--configurations", "100"])
    assert printed.exit_code == 0 and "--workers 2" in printed.stdout
    assert asked == [(study.folder, 100)] * 2
