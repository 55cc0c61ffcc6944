"""The measuring loop: requests of a role go in, records come out, measured in this process or on workers.

A configuration that raises, or kills its worker, is tried three times and then recorded as failed. Ctrl-C finishes the
running measurements. Recorded measurements are not repeated.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.ledger import check_use
from qua2sedimo.measuring.workers import Job, Outcome, RayWorkers, Work, run_here
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.objective import Objective
from qua2sedimo.options import Configuration, SearchSpace
from qua2sedimo.records import Failure, Origin, Record, Records
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.system.progress import Progress, noted, silent
from qua2sedimo.system.stopping import stop_on_interrupt
from qua2sedimo.system.versions import versions

#: Consecutive failures that stop the loop: the configurations are then unlikely to be the cause.
_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True)
class Workers:
    """Where to measure: this process, ``count`` Ray actors on this machine, or actors of the cluster at ``address``."""

    count: int | None = None
    address: str | None = None

    @property
    def here(self) -> bool:
        return not self.count and self.address is None


class Crew:
    """Runs jobs in this process, or on Ray actors that stay alive between calls of :meth:`do`.

    ``here`` creates the work of this process, ``opener`` ("module:function") with ``arguments`` that of an actor. With
    ``one_first`` the other actors start when the first is ready: they read what it found out.
    """

    def __init__(
        self, workers: Workers, here: Callable[[], Work], opener: str, arguments: Sequence[Any],
        progress: Progress = silent, one_first: bool = False,
    ) -> None:  # fmt: skip
        self._here, self._opener, self._arguments = here, opener, arguments
        self._workers, self._progress, self._one_first = workers, progress, one_first
        self._work: Work | None = None
        self._pool: RayWorkers | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.__exit__(*exception)

    def do(self, jobs: Iterable[Job], stop: Callable[[], bool] = lambda: False) -> Generator[Outcome, None, None]:
        """Outcomes as they arrive; after ``stop()`` only those of running jobs. Starts the workers if necessary."""
        if self._workers.here:
            self._work = self._work or self._here()
            return run_here(self._work, jobs, stop)
        return self._connected().run(jobs, stop)

    @property
    def width(self) -> int:
        """How many jobs are done at a time."""
        return 1 if self._workers.here else self._connected().width

    def _connected(self) -> RayWorkers:
        if self._pool is None:
            where = self._workers.count, self._workers.address
            pool = RayWorkers(self._opener, self._arguments, *where, self._started, self._one_first)
            self._pool = pool.__enter__()
        return self._pool

    def _started(self, ready: int, count: int) -> None:
        self._progress(ready, count, "starting workers")

    def each(self, contents: Sequence[Mapping[str, Any]], what: str) -> Iterator[tuple[int, Any]]:
        """(position, result) of jobs that must all succeed, as they finish.

        Raises :class:`Qua2SeDiMoError` saying that ``what`` failed if a job fails at its last attempt;
        KeyboardInterrupt after Ctrl-C, once the running jobs are done.
        """
        jobs = [Job(i, json.dumps(content)) for i, content in enumerate(contents)]
        done = 0
        with stop_on_interrupt() as stop, closing(self.do(jobs, stop)) as outcomes:
            for outcome in outcomes:
                if outcome.result is None:
                    raise Qua2SeDiMoError(f"{what} failed {outcome.attempts} times, the last: {outcome.error}")
                done += 1
                yield outcome.job.key, json.loads(outcome.result)
            if done < len(jobs):
                raise KeyboardInterrupt

    def do_all(self, contents: Sequence[dict[str, Any]], what: str, progress: Progress = silent) -> None:
        """Run jobs that must all succeed, as :meth:`each` does, and report progress."""
        if not contents:
            return
        progress(0, len(contents), what)
        for done, _ in enumerate(self.each(contents, what), 1):
            progress(done, len(contents), what)


@dataclass(frozen=True)
class Request:
    """A requested measurement: a configuration, its number in the role, and the images."""

    number: int
    configuration: Configuration
    images: range

    def job(self, key: int) -> Job:
        content = {"do": "measure", "start": self.images.start, "stop": self.images.stop}
        return Job(key, json.dumps({**content, "configuration": self.configuration.to_json()}))


def run(
    role: str,
    requests: Iterable[Request],
    crew: Crew,
    records: Records,
    space: SearchSpace,
    objective: Objective,
    what: str = "measuring configurations",
    progress: Progress = silent,
    prepare: Callable[[], object] = lambda: None,
    again: bool = False,
    count: int | None = None,
) -> None:
    """Measure and record requests of a role; ``prepare`` is called first if there is anything to measure.

    Measures all requests, or, with ``count``, as many of a sequence as are needed for ``count`` measurements, earlier
    ones included. What is recorded (configuration, number, first image) is skipped; what failed too, unless ``again``.
    Layers that a configuration leaves out are in full precision. Raises :class:`Qua2SeDiMoError` after three
    consecutive failures, and KeyboardInterrupt after Ctrl-C, once the running measurements are recorded.
    """
    known = records.all(role)
    measured = {(r.number, r.configuration.digest, r.measurement.start) for r in known}
    failed = set() if again else {(f.number, f.configuration.digest, f.start) for f in records.failed(role)}
    queue, best = _Queue(role, requests, count, measured, failed), _Best(objective, known)
    progress(queue.done, queue.total, best.note(what))
    if queue.nothing_left:
        return
    prepare()
    in_a_row = 0
    with stop_on_interrupt() as stop, closing(crew.do(queue, stop)) as outcomes:
        for outcome in outcomes:
            record = record_of(role, queue.given[outcome.job.key], outcome, space)
            if isinstance(record, Record):
                records.add(record)
                best.see(record)
                in_a_row = 0
            else:
                records.add_failure(record)
                in_a_row += 1
            queue.settle(isinstance(record, Record))
            progress(queue.done, queue.total, best.note(what))
            if in_a_row == _FAILURES_IN_A_ROW:
                raise Qua2SeDiMoError(
                    f"{in_a_row} configurations in a row could not be measured, the last: {outcome.error}",
                    "They are recorded as failed. Fix the cause, then retry them with --again.",
                )
        if stop() and not queue.nothing_left:
            raise KeyboardInterrupt


#: Number and digest of a configuration, and first image.
Place = tuple[int, str, int]


class _Queue:
    """Jobs of requests, in order: as many as are needed for ``count`` measurements if none fails.

    Without ``count``, every request once. A failure makes room for another request, so there may be a next job after
    StopIteration. ``given``: job key → request.
    """

    def __init__(
        self, role: str, requests: Iterable[Request], count: int | None, measured: Collection[Place],
        failed: Collection[Place],
    ) -> None:  # fmt: skip
        self._replaces = count is not None
        if count is None:
            requests = every = list(requests)
            count = len(every)
        self.total = count
        self.done = 0
        self.given: dict[int, Request] = {}
        self._role, self._measured, self._failed = role, measured, failed
        self._sequence, self._keys = iter(requests), itertools.count()
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._fill()

    def _fill(self) -> None:
        """Skip recorded requests, and have the next job waiting, unless enough are running."""
        while not self._waiting and self.done + self._running < self.total:
            request = next(self._sequence, None)
            if request is None:
                self.total = self.done + self._running  # the sequence is exhausted
                return
            place = request.number, request.configuration.digest, request.images.start
            if place in self._measured or (place in self._failed and not self._replaces):
                self.done += 1
            elif place not in self._failed:
                check_use(self._role, request.images)
                key = next(self._keys)
                self.given[key] = request
                self._waiting.append(request.job(key))

    @property
    def nothing_left(self) -> bool:
        return not self._waiting and not self._running

    def settle(self, measured: bool) -> None:
        """Count a finished job."""
        self._running -= 1
        self.done += measured or not self._replaces
        self._fill()

    def __iter__(self) -> _Queue:
        return self

    def __next__(self) -> Job:
        self._fill()
        if not self._waiting:
            raise StopIteration
        self._running += 1
        return self._waiting.popleft()


def record_of(role: str, request: Request, outcome: Outcome, space: SearchSpace) -> Record | Failure:
    """The record or failure to store for an outcome."""
    number, configuration, bits = request.number, request.configuration, space.average_bits(request.configuration)
    where: dict[str, Any] = {"host": outcome.host, "worker": outcome.worker, "attempts": outcome.attempts}
    if outcome.result is None:
        origin = Origin(**where, versions=versions())
        return Failure(role, number, configuration, bits, request.images.start, outcome.error or "", origin)
    found = json.loads(outcome.result)
    origin = Origin(**where, peak_memory=found["peak_memory"], versions=found["versions"])
    sets = {name: Estimate.from_json(values) for name, values in found["sets"].items()}
    measurement = Measurement(found["start"], found["values"], found["seconds"], sets)
    return Record(role, number, configuration, bits, measurement, origin)


class _Best:
    """The best value of the objective so far, for the progress line."""

    def __init__(self, objective: Objective, records: Iterable[Record]) -> None:
        self._objective = objective
        self._gain = -math.inf
        for record in records:
            self.see(record)

    def see(self, record: Record) -> None:
        gain = self._objective.gain(record)
        if gain > self._gain:  # never for NaN
            self._gain = gain

    def note(self, what: str) -> str:
        value = self._objective.sign * self._gain
        return noted(what, f"best {self._objective.text} {value:.4g}") if math.isfinite(value) else what
