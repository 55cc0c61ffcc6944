"""Workers: every job ends once, with its result or its error, whatever becomes of who does it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.workers import ATTEMPTS, Job, Outcome, RayWorkers, run_here, shares
from qua2sedimo.measuring.workers.jobs import Queue


def jobs(*contents: str) -> list[Job]:
    return [Job(key, content) for key, content in enumerate(contents)]


def tricky(folder: str, deadly: bool = False) -> Callable[[str], str]:
    """Work that shouts its job; some jobs fail, once or always, by an exception or by the death of their worker."""

    def work(content: str) -> str:
        with (Path(folder) / content).open("a") as tally:
            tally.write(".")
        tries = len((Path(folder) / content).read_text())
        if content == "refused":
            raise Qua2SeDiMoError("no such metric", "Choose another.")
        if "kills" in content and deadly and ("always" in content or tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if "raises" in content and ("always" in content or tries == 1):
            raise MemoryError(f"no room for {content}")
        return content.upper()

    return work


def brief(outcomes: list[Outcome]) -> dict[int, tuple[str | None, str | None, int]]:
    return {one.job.key: (one.result, one.error, one.attempts) for one in outcomes}


def test_jobs_are_done_in_order_and_one_that_fails_is_tried_again(tmp_path: Path) -> None:
    asked = jobs("one", "raises once", "raises always", "two")
    outcomes = list(run_here(tricky(str(tmp_path)), asked))
    assert [one.job for one in outcomes] == asked
    assert brief(outcomes) == {
        0: ("ONE", None, 1),
        1: ("RAISES ONCE", None, 2),
        2: (None, "MemoryError: no room for raises always", ATTEMPTS),
        3: ("TWO", None, 1),
    }
    assert len((tmp_path / "raises always").read_text()) == ATTEMPTS == 3


def test_a_problem_with_the_input_is_raised_at_once(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="no such metric") as caught:
        list(run_here(tricky(str(tmp_path)), jobs("refused", "one")))
    assert caught.value.remedy == "Choose another."
    assert [path.name for path in tmp_path.iterdir()] == ["refused"]


def test_after_stop_no_new_job_is_begun(tmp_path: Path) -> None:
    found: list[Outcome] = []
    for outcome in run_here(tricky(str(tmp_path)), jobs("one", "two", "three"), lambda: len(found) == 2):
        found.append(outcome)  # noqa: PERF402 - `stop` looks at it
    assert [one.result for one in found] == ["ONE", "TWO"] and not (tmp_path / "three").exists()


def test_a_queue_draws_jobs_when_they_are_wanted_and_knows_whether_there_are_more(tmp_path: Path) -> None:
    drawn: list[int] = []

    def asked() -> Iterator[Job]:
        for job in jobs("one", "two"):
            drawn.append(job.key)
            yield job

    queue = Queue(asked())
    assert queue.more() and queue.more() and drawn == [0]
    first = queue.take()
    assert first == Job(0, "one") and drawn == [0]
    assert queue.failed(first, "no room", "here", "1") is None and queue.more() and drawn == [0]
    assert [queue.take(), queue.take(), queue.take()] == [Job(0, "one"), Job(1, "two"), None]
    assert not queue.more()
    done = queue.done(first, "ONE", "here", "1")
    assert (done.attempts, done.result) == (2, "ONE")


@pytest.mark.parametrize(
    ("count", "nodes", "expected"),
    [
        (2, [{"CPU": 8}], (2, 4.0, 0.0, 4)),
        (4, [{"CPU": 2}], (4, 0.5, 0.0, 1)),
        (None, [{"CPU": 8}, {"CPU": 4}], (2, 4.0, 0.0, 4)),
        (None, [{"CPU": 16, "GPU": 2}, {"CPU": 4}], (2, 8.0, 1.0, 8)),  # the node without a GPU gets none
        (4, [{"CPU": 16, "GPU": 1}], (4, 4.0, 0.25, 4)),
        (3, [{"CPU": 12, "GPU": 2}], (3, 3.0, 0.5, 3)),  # two fit on a GPU: a third of each would not do
    ],
)
def test_workers_share_the_machines_evenly(count, nodes, expected) -> None:
    found, share = shares(count, nodes)
    assert (found, share.cpus, share.gpus, share.threads) == expected


machines = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(1, 64).map(float)}, optional={"GPU": st.integers(0, 8).map(float)}),
    min_size=1,
    max_size=4,
)


@given(count=st.integers(1, 40), nodes=machines)
def test_there_is_room_for_every_worker(count: int, nodes: list[dict[str, float]]) -> None:
    found, share = shares(count, nodes)
    assert found == count and share.threads >= 1

    def fit(node: dict[str, float]) -> int:
        on_gpus = int(node.get("GPU", 0)) * int(1 / share.gpus) if share.gpus else count
        return min(on_gpus, int(node["CPU"] / share.cpus + 1e-9))

    assert sum(map(fit, nodes)) >= count


def test_a_cluster_without_a_cpu_is_refused() -> None:
    with pytest.raises(Qua2SeDiMoError, match="no node with a CPU"):
        shares(None, [{"memory": 1e9}])


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Qua2SeDiMoError, match="need Ray") as caught, RayWorkers("a:b", [], 2) as pool:
        list(pool.run(jobs("one")))
    assert "qua2sedimo[ray]" in str(caught.value.remedy)


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_that_dies_is_replaced_and_its_job_tried_again(tmp_path: Path) -> None:
    sent = jobs("one", "raises always", "kills once", "kills always")
    ready: list[int] = []
    workers = RayWorkers(f"{__name__}:tricky", [str(tmp_path), True], 1, started=lambda count, of: ready.append(count))
    with workers as pool:
        outcomes = list(pool.run(sent))
    found = brief(outcomes)
    assert found[0] == ("ONE", None, 1) and found[2] == ("KILLS ONCE", None, 2)
    assert found[1] == (None, "MemoryError: no room for raises always", 3)
    result, error, attempts = found[3]
    assert result is None and attempts == 3 and "its worker died" in str(error)
    assert len(outcomes) == len(sent)
    assert len((tmp_path / "kills always").read_text()) == 3
    assert os.getpid() not in {int(one.worker) for one in outcomes}
    assert len(ready) == 4  # one, and one for each death but the last, after which nothing is to be done
