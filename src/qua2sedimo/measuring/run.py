"""The one loop that measures: requests of a role go in, records come out, whoever measures them.

A configuration that raises, or kills its worker, is tried three times and then recorded as failed. Ctrl-C finishes what
is being measured. What is recorded is not measured again.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
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

#: Configurations that fail one after the other, before it is no longer their fault.
_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True)
class Workers:
    """Who measures: this process, ``count`` Ray actors of this machine, or actors of the cluster at ``address``."""

    count: int | None = None
    address: str | None = None

    @property
    def here(self) -> bool:
        return not self.count and self.address is None


class Crew:
    """Does jobs, one call of :meth:`do` after the other, in this process or on Ray actors that live in between.

    ``here`` makes the work of this process, ``opener`` ("module:function") and ``arguments`` that of an actor. With
    ``one_first`` the other actors start when the first is ready: it finds something out that they then read.
    """

    def __init__(
        self,
        workers: Workers,
        here: Callable[[], Work],
        opener: str,
        arguments: Sequence[Any],
        progress: Progress = silent,
        one_first: bool = False,
    ) -> None:
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
        """Outcomes as they come; after ``stop()`` only of jobs that are being done. Starts the workers if need be."""
        if self._workers.here:
            self._work = self._work or self._here()
            return run_here(self._work, jobs, stop)
        if self._pool is None:
            count, address = self._workers.count, self._workers.address
            self._pool = RayWorkers(
                self._opener, self._arguments, count, address, self._started, self._one_first
            ).__enter__()
        return self._pool.run(jobs, stop)

    def _started(self, ready: int, count: int) -> None:
        self._progress(ready, count, "starting workers")

    def each(self, contents: Sequence[dict[str, Any]], what: str) -> Iterator[tuple[int, Any]]:
        """(position, result) of jobs that must all succeed, as they end.

        Raises :class:`Qua2SeDiMoError` saying ``what`` failed if one fails at its last try; KeyboardInterrupt after
        Ctrl-C, when the jobs under way are done.
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
        """Do jobs that must all succeed, as :meth:`each` does, and say how far they are."""
        if not contents:
            return
        progress(0, len(contents), what)
        for done, _ in enumerate(self.each(contents, what), 1):
            progress(done, len(contents), what)


@dataclass(frozen=True)
class Request:
    """One measurement that is asked for: a configuration, under its number in the role, on these images."""

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
    """Measure what is requested of a role, and record it; ``prepare`` is called before if there is anything to measure.

    All requests, or those of a longer sequence until ``count`` are measured, the ones recorded before included. What is
    recorded under its number for its first image is passed over; failures too, unless ``again``. Layers that a
    configuration leaves out are at full precision. Raises :class:`Qua2SeDiMoError` when three in a row fail, and
    KeyboardInterrupt after Ctrl-C, when what was being measured is recorded.
    """
    known = records.all(role)
    measured = {(r.number, r.measurement.start) for r in known}
    failed = set() if again else {(f.number, f.start) for f in records.failed(role)}
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
                    "They are recorded as failed. When the cause is mended, try them again with --again.",
                )
        if stop() and not queue.nothing_left:
            raise KeyboardInterrupt


class _Queue:
    """Jobs of requests, in order: as many as are needed for ``count`` to be measured if none fails.

    Without ``count`` it is all of them, once. One that fails leaves room for another: asked again after an end, there
    may be a further job. ``given``: the request of each job's key.
    """

    def __init__(
        self,
        role: str,
        requests: Iterable[Request],
        count: int | None,
        measured: Collection[tuple[int, int]],
        failed: Collection[tuple[int, int]],
    ) -> None:
        if count is None:
            requests = list(requests)
        self.total = len(requests) if isinstance(requests, list) else count or 0
        self.done = 0
        self.given: dict[int, Request] = {}
        self._role, self._measured, self._failed, self._replaces = role, measured, failed, count is not None
        self._sequence, self._keys = iter(requests), itertools.count()
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._fill()

    def _fill(self) -> None:
        """Pass over what is recorded, and have the next job waiting, unless enough are under way."""
        while not self._waiting and self.done + self._running < self.total:
            request = next(self._sequence, None)
            if request is None:
                self.total = self.done + self._running  # the sequence has no more
                return
            place = request.number, request.images.start
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
        """A job has ended."""
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
    """What is written down of an outcome."""
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
