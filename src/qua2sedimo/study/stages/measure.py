"""Measuring: random configurations of a study, and others on request, into records.db."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Collection, Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.workers import Job, Outcome, RayWorkers, Work, run_here
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.options import Configuration
from qua2sedimo.records import Failure, Origin, Record
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.system.machine import host, peak_memory
from qua2sedimo.system.progress import Progress, noted, silent
from qua2sedimo.system.stopping import stop_on_interrupt
from qua2sedimo.system.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from qua2sedimo.study.facade import Study

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


def measure_samples(
    study: Study,
    configurations: int,
    progress: Progress = silent,
    workers: Workers = Workers(),
    again: bool = False,
) -> list[Record]:
    """Measure random configurations until ``configurations`` of the seed's sequence are measured.

    In place of one that failed the next of the sequence is measured, if it has one. See :func:`measure_numbered`.
    """
    study.sampler.require(configurations)
    _check_listed(study)
    ends = itertools.count() if study.sampler.count is None else range(study.sampler.count)
    sequence = ((number, study.sampler(number)) for number in ends)
    return measure_numbered(study, "sample", sequence, progress, workers, again, configurations)


def _check_listed(study: Study) -> None:
    """Raise if a recorded entry of the user's list is another one now."""
    sampler = study.sampler
    if sampler.name != "list":
        return
    recorded: list[Record | Failure] = [*study.records.all("sample"), *study.records.failed("sample")]
    for kept in recorded:
        if kept.number >= len(sampler.listed) or sampler.listed[kept.number] != kept.configuration:
            raise Qua2SeDiMoError(
                f"entry {kept.number + 1} of {study.settings.configurations} is not the one that was measured",
                "Put it back and add new entries at the end, or make another study for the new list.",
            )


def measure_numbered(
    study: Study,
    role: str,
    numbered: Iterable[tuple[int, Configuration]],
    progress: Progress = silent,
    workers: Workers = Workers(),
    again: bool = False,
    count: int | None = None,
) -> list[Record]:
    """Measure configurations on the study's first images; returns all of the role, by number.

    All of ``numbered``, or of a longer sequence until ``count`` are measured, those recorded before included. What is
    recorded under its number is passed over, failed ones too unless ``again``. Layers that a configuration
    leaves out are at full precision. One that fails, or kills its worker, three times is recorded as failed; three such
    in a row are an error. Ctrl-C ends with KeyboardInterrupt when what is being measured is kept.
    """
    images = range(study.settings.images)
    measured = {r.number for r in study.records.all(role) if r.measurement.start == images.start}
    failed = set() if again else {f.number for f in study.records.failed(role) if f.start == images.start}
    plan = _Plan(numbered, count, measured, failed)
    what, best = "measuring configurations", _Best(study, study.records.all(role))
    progress(plan.done, plan.total, best.note(what))
    if plan.nothing_left:
        return study.records.all(role)
    in_a_row = 0
    with stop_on_interrupt() as stop, closing(_outcomes(study, images, plan, workers, stop, progress)) as outcomes:
        for outcome in outcomes:
            record = record_of(study, role, outcome, images.start)
            if isinstance(record, Record):
                study.records.add(record)
                best.see(record)
                in_a_row = 0
            else:
                study.records.add_failure(record)
                in_a_row += 1
            plan.settle(isinstance(record, Record))
            progress(plan.done, plan.total, best.note(what))
            if in_a_row == _FAILURES_IN_A_ROW:
                raise Qua2SeDiMoError(
                    f"{in_a_row} configurations in a row could not be measured, the last: {outcome.error}",
                    "They are recorded as failed. When the cause is mended, try them again with --again.",
                )
        if stop() and not plan.nothing_left:
            raise KeyboardInterrupt
    return study.records.all(role)


class _Plan:
    """Jobs of numbered configurations, in order: so many that ``count`` will be measured if none fails.

    Without ``count`` it is all of them, once. One that fails leaves room for another: asked again after an end, there
    may be a further job.
    """

    def __init__(
        self,
        numbered: Iterable[tuple[int, Configuration]],
        count: int | None,
        measured: Collection[int],
        failed: Collection[int],
    ) -> None:
        if count is None:
            numbered = list(numbered)
        self.total = len(numbered) if isinstance(numbered, list) else count or 0
        self.done = 0
        self._measured, self._failed, self._replaces = measured, failed, count is not None
        self._sequence = iter(numbered)
        self._waiting: deque[Job] = deque()
        self._given = 0
        self._fill()

    def _fill(self) -> None:
        """Pass over what is recorded, and have the next job waiting, unless enough are under way."""
        while not self._waiting and self.done + self._given < self.total:
            number, configuration = next(self._sequence, (None, None))
            if number is None or configuration is None:
                self.total = self.done + self._given  # the sequence has no more
            elif number in self._measured or (number in self._failed and not self._replaces):
                self.done += 1
            elif number not in self._failed:
                self._waiting.append(Job(number, configuration.to_json()))

    @property
    def nothing_left(self) -> bool:
        return not self._waiting and not self._given

    def settle(self, measured: bool) -> None:
        """A job has ended."""
        self._given -= 1
        self.done += measured or not self._replaces
        self._fill()

    def __iter__(self) -> _Plan:
        return self

    def __next__(self) -> Job:
        self._fill()
        if not self._waiting:
            raise StopIteration
        self._given += 1
        return self._waiting.popleft()


def keep(study: Study, role: str, number: int, configuration: Configuration, measurement: Measurement) -> None:
    """Write one measurement made in this process into the study's records."""
    bits = study.space.average_bits(configuration)
    origin = Origin(host(), "", 1, peak_memory(), versions())
    study.records.add(Record(role, number, configuration, bits, measurement, origin))


# Who measures ------------------------------------------------------------------------------------------------------


def _outcomes(
    study: Study, images: range, jobs: Iterable[Job], workers: Workers, stop: Callable[[], bool], progress: Progress
) -> Generator[Outcome, None, None]:
    if workers.here:
        try:
            yield from run_here(work_of(study, images), jobs, stop)
        finally:
            study.switch.restore()
        return
    if study.pipeline_given:
        raise Qua2SeDiMoError(
            "workers load the pipeline by its name, and this study was given one in memory",
            "Save the pipeline to a folder and make a study of that, or measure without workers.",
        )
    study.bank  # noqa: B018 - graph and bank must be there before a worker opens them
    pool = RayWorkers(
        "qua2sedimo.study.stages.measure:open_worker",
        [str(study.folder.resolve()), images.start, images.stop],
        workers.count,
        workers.address,
        lambda ready, count: progress(ready, count, "starting workers"),
        one_first=not study.batch_is_known or study.references.find(images) is None,
    )
    yield from pool.run(jobs, stop)


def open_worker(folder: str, start: int, stop: int) -> Work:
    """The work of a worker that knows a study by its folder: its pipeline, bank and full-precision images, once."""
    from qua2sedimo.study.facade import Study

    study = Study(folder)
    if not (study.folder / "bank" / "index.json").exists():
        raise Qua2SeDiMoError(
            f"{study.folder} has no bank here", "The study folder must be on storage that all machines share."
        )
    return work_of(study, range(start, stop))


def work_of(study: Study, images: range) -> Work:
    """Configuration → measurement with the process's memory and versions, both as JSON."""
    measure = study.measurer(images.start, images.stop)
    measure.reference  # noqa: B018 - a pipeline that cannot paint at full precision is no configuration's fault

    def work(content: str) -> str:
        measurement = measure(Configuration.from_json(content))
        return json.dumps({**asdict(measurement), "peak_memory": peak_memory(), "versions": versions()})

    return work


def record_of(study: Study, role: str, outcome: Outcome, start: int) -> Record | Failure:
    """What is written down of an outcome."""
    configuration = Configuration.from_json(outcome.job.content)
    bits = study.space.average_bits(configuration)
    where: dict[str, Any] = {"host": outcome.host, "worker": outcome.worker, "attempts": outcome.attempts}
    if outcome.result is None:
        error = outcome.error or ""
        return Failure(role, outcome.job.key, configuration, bits, start, error, Origin(**where, versions=versions()))
    found = json.loads(outcome.result)
    origin = Origin(**where, peak_memory=found["peak_memory"], versions=found["versions"])
    sets = {name: Estimate(**values) for name, values in found["sets"].items()}
    measurement = Measurement(found["start"], found["values"], found["seconds"], sets)
    return Record(role, outcome.job.key, configuration, bits, measurement, origin)


class _Best:
    """The best value of the objective so far, for the progress line."""

    def __init__(self, study: Study, records: Iterable[Record]) -> None:
        self._objective = study.objective
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
