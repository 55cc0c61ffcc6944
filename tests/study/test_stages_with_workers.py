"""Search, choose, frontier and comparison by workers, one of which is killed: the numbers of one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Choice, Study
from qua2sedimo.measuring.run import Workers
from qua2sedimo.measuring.workers import RayWorkers, Work
from qua2sedimo.predictor import FitSettings
from qua2sedimo.records import Record, Records
from qua2sedimo.study.stages.compare import Row
from qua2sedimo.study.stages.frontier import Point
from qua2sedimo.study.worker import crew, open_worker

OPTIONS = "uaq-2,uaq-4,kmeans_a-3"
BITS, IMAGES = 3.6, 110
FIT = FitSettings(epochs=4, channels=4, hops=1)
#: Each kind of job, and each stage, kills a worker once.
DEADLY = (("measure", 0), ("measure", 10_000), ("measure", 20_000), ("measure", 30_000), ("paint", 100_000))


def mortal_worker(folder: str) -> Work:
    """A worker as ever, but whoever is first given one of these jobs dies of it."""
    work = open_worker(folder)

    def done(content: str) -> str:
        job = json.loads(content)
        for what, first in DEADLY:
            mark = Path(folder).parent / f"died-{what}-{first}"
            if job["do"] == what and first <= job["start"] < first + 10_000 and not mark.exists():
                mark.touch()
                os._exit(1)
        return work(content)

    return done


def all_stages(study: Study, workers: Workers) -> tuple[Choice, Choice, list[Point], list[Row]]:
    study.measure(20, workers=workers)
    study.fit(FIT)
    found = study.search(BITS, IMAGES, workers=workers).choice
    chosen = study.choose(3.9, candidates=3, workers=workers)
    points = study.frontier((3.2, 3.6), images=2, workers=workers)
    packed = study.folder / "packed"
    study.export(found, packed)
    return found, chosen, points, study.compare(found, packed, 4, act_bits=(8,), workers=workers)


def essence(study: Study) -> list[Any]:
    """All of the records but their seconds and where they were measured."""
    records = study.workspace.records.all()
    return [(r.role, r.number, r.configuration, replace(r.measurement, seconds=0)) for r in records]


@pytest.mark.usefixtures("quick_workers")
def test_every_stage_gives_the_same_by_workers_of_which_some_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pipeline().save_pretrained(tmp_path / "model")
    settings = small_settings(model=str(tmp_path / "model"), options=OPTIONS, batch=2)
    alone = Study.create(tmp_path / "alone" / "study", settings)
    expected = all_stages(alone, Workers())

    def mortal(factory: str, *arguments: Any, **more: Any) -> RayWorkers:
        measures = factory.endswith(":open_worker")  # others make statistics and bank
        return RayWorkers(f"{__name__}:mortal_worker" if measures else factory, *arguments, **more)

    monkeypatch.setattr("qua2sedimo.measuring.run.RayWorkers", mortal)
    spread = Study.create(tmp_path / "spread" / "study", settings)
    with crew(spread.workspace, Workers(2)):  # the workers live on from stage to stage
        found = all_stages(spread, Workers(2))

    died = {path.name for path in (tmp_path / "spread").glob("died-*")}
    assert died == {f"died-{what}-{first}" for what, first in DEADLY}
    assert spread.workspace.records.failed() == []
    assert essence(spread) == essence(alone)
    workers = {r.origin.worker for r in spread.workspace.records.all()}
    assert str(os.getpid()) not in workers and len(workers) > 1
    assert found[:3] == expected[:3]
    for row, other in zip(found[3], expected[3], strict=True):
        assert (row.name, row.metrics) == (other.name, other.metrics)


def killed_after(folder: Path, measurements: int) -> None:
    """Search by two workers, and die of SIGKILL when so many measurements have been recorded."""
    add, left = Records.add, measurements

    def counted(self: Records, record: Record) -> None:
        nonlocal left
        add(self, record)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Records.add = counted  # type: ignore[method-assign]
    Study(folder).search(BITS, IMAGES, workers=Workers(2))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_a_search_by_workers_that_is_killed_again_and_again_ends_as_it_would_have(tmp_path: Path) -> None:
    """In the rounds, and in the final; ended by workers."""
    small_pipeline().save_pretrained(tmp_path / "model")
    settings = small_settings(model=str(tmp_path / "model"), options=OPTIONS, batch=2)
    alone = Study.create(tmp_path / "alone" / "study", settings)
    expected = alone.search(BITS, IMAGES)
    total, folder = len(alone.workspace.records.all()), tmp_path / "spread" / "study"
    Study.create(folder, settings)
    for after in (3, 9, total - 12 - 3):
        victim = multiprocessing.get_context("fork").Process(target=killed_after, args=(folder, after))
        victim.start()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
    spread = Study(folder)
    found = spread.search(BITS, IMAGES, workers=Workers(2))
    assert found.choice == expected.choice and str(found.rounds) == str(expected.rounds)
    assert sorted(map(str, unnumbered(spread))) == sorted(map(str, unnumbered(alone)))


def unnumbered(study: Study) -> list[Any]:
    return [(role, sorted(configuration.items()), measured) for role, _, configuration, measured in essence(study)]
