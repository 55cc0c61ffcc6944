"""Statistics and bank made by workers, of which some die: the files of one process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import small_pipeline, small_settings

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.measuring.run import Workers
from qua2sedimo.measuring.workers import RayWorkers, Work
from qua2sedimo.study.building import open_builder

#: Each kind of job kills a worker once.
DEADLY = ("record", "moments", "gradients", "quantize", "weigh")


def mortal_builder(folder: str) -> Work:
    """A worker as ever, but whoever is first given a job of each kind dies of it."""
    work = open_builder(folder)

    def done(content: str) -> str:
        what = json.loads(content)["do"]
        mark = Path(folder).parent / f"died-{what}"
        if what in DEADLY and not mark.exists():
            mark.touch()
            os._exit(1)
        return work(content)

    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_pipeline().save_pretrained(folder)
    return folder


def new(folder: Path, model: Path) -> Study:
    changes: dict[str, Any] = {"options": "row-3,row-4", "rounding": "compensated", "observe": 8, "batch": 2}
    return Study.create(folder, small_settings(model=str(model), **changes))


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    study = new(tmp_path_factory.mktemp("alone") / "study", model)
    study.quantize()
    assert study.workspace.statistics.has_gradients and study.workspace.bank.changes.of
    return contents(study)


def contents(study: Study) -> dict[str, bytes]:
    """All files that were made, but lists in the order in which they were finished."""
    folders = [study.folder / name for name in ("statistics", "bank")]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(study.folder)): path.read_bytes()
        for path in files
        if path.name != "checksums.jsonl" and path.suffix != ".lock"
    }


@pytest.mark.usefixtures("quick_workers")
def test_workers_of_which_some_die_make_the_same_files(
    model: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mortal(factory: str, *arguments: Any, **more: Any) -> RayWorkers:
        return RayWorkers(f"{__name__}:mortal_builder", *arguments, **more)

    monkeypatch.setattr("qua2sedimo.measuring.run.RayWorkers", mortal)
    study = new(tmp_path / "study", model)
    said: list[str] = []
    study.quantize(lambda done, total, what: said.append(what), Workers(2))
    assert all((tmp_path / f"died-{what}").exists() for what in DEADLY)
    assert contents(study) == expected
    assert {"observing: images", "observing: layer inputs", "quantizing layers", "weighing options"} <= set(said)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_workers")
def test_a_node_that_is_lost_midway_changes_nothing(model: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=1)
    study = new(tmp_path / "study", model)
    killed: list[str] = []

    def watch(done: int, total: int, what: str) -> None:
        if what == "quantizing layers" and 0 < done < total and not killed:
            killed.append(what)
            cluster.remove_node(lost, allow_graceful=False)

    try:
        study.quantize(watch, Workers(2, cluster.address))
    finally:
        cluster.shutdown()
    assert killed and contents(study) == expected


def test_it_goes_on_where_another_stopped(model: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """Without workers, what they left is used: every batch, moment and layer has its own file."""
    study = new(tmp_path / "study", model)
    with pytest.raises(KeyboardInterrupt):
        study.quantize(_stopping)
    assert contents(study) != expected
    new(tmp_path / "study", model).quantize()
    assert contents(study) == expected


def _stopping(done: int, total: int, what: str) -> None:
    if what == "weighing options" and done:
        raise KeyboardInterrupt


class Absent:
    """Workers whose files are on other storage than ours."""

    width = 2

    def each(self, contents: Sequence[Mapping[str, Any]], what: str) -> Iterator[tuple[int, Any]]:
        yield from ((place, True) for place in range(len(contents)))


@pytest.mark.parametrize("begun", ["", "observing: images", "observing: layer inputs", "observing: gradients"])
def test_files_that_do_not_appear_here_are_an_error(
    begun: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever stage: each is begun where this process stopped."""
    monkeypatch.setattr("qua2sedimo.system.elsewhere._SEEN_AFTER", 0.0)

    def until(done: int, total: int, what: str) -> None:
        if what == begun and done == total:
            raise KeyboardInterrupt

    if begun:
        with pytest.raises(KeyboardInterrupt):
            new(tmp_path / "study", model).quantize(until)
    inside = new(tmp_path / "study", model).workspace
    inside.elsewhere = Absent()
    with pytest.raises(Qua2SeDiMoError, match="written by a worker, and is not there") as error:
        inside.build_bank()
    assert "storage that all machines share" in str(error.value.remedy)


def test_a_pipeline_in_memory_is_refused(tmp_path: Path) -> None:
    pipeline = small_pipeline()
    study = Study.create(tmp_path / "study", small_settings(model="mine", rounding="compensated"), pipeline)
    with pytest.raises(Qua2SeDiMoError, match="passed in memory"):
        study.quantize(workers=Workers(2))
