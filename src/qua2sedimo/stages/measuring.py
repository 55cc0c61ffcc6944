"""Measuring: random configurations of a study, and others on request, into records.db."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation import Estimate, Measurement
from qua2sedimo.evaluation.workers import Job, Outcome, RayWorkers, Work, run_here
from qua2sedimo.machine import host, peak_memory
from qua2sedimo.options import Configuration
from qua2sedimo.records import Failure, Origin, Record
from qua2sedimo.stages.progress import Progress, noted, silent
from qua2sedimo.stages.stopping import stop_on_interrupt
from qua2sedimo.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from qua2sedimo.study import Study

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
    """Measure random configurations until the first ``configurations`` of the seed's sequence are measured or failed.

    See :func:`measure_numbered`.
    """
    study.sampler.require(configurations)
    numbered = ((number, study.sampler(number)) for number in range(configurations))
    return measure_numbered(study, "sample", numbered, progress, workers, again)


def measure_numbered(
    study: Study,
    role: str,
    numbered: Iterable[tuple[int, Configuration]],
    progress: Progress = silent,
    workers: Workers = Workers(),
    again: bool = False,
) -> list[Record]:
    """Measure configurations on the study's first images; returns all of the role, by number.

    What is recorded under its number is passed over, failed ones too unless ``again``. Layers that a configuration
    leaves out are at full precision. One that fails, or kills its worker, three times is recorded as failed; three such
    in a row are an error. Ctrl-C ends with KeyboardInterrupt when what is being measured is kept.
    """
    images = range(study.settings.images)
    wanted = dict(numbered)
    settled = {r.number for r in study.records.all(role) if r.measurement.start == images.start}
    if not again:
        settled |= {f.number for f in study.records.failed(role) if f.start == images.start}
    jobs = [Job(number, c.to_json()) for number, c in wanted.items() if number not in settled]
    done, what = len(wanted) - len(jobs), "measuring configurations"
    best = _Best(study, study.records.all(role))
    progress(done, len(wanted), best.note(what))
    if not jobs:
        return study.records.all(role)
    in_a_row = 0
    with stop_on_interrupt() as stop, closing(_outcomes(study, images, jobs, workers, stop, progress)) as outcomes:
        for outcome in outcomes:
            configuration = wanted[outcome.job.key]
            record = record_of(study, role, outcome, configuration, images.start)
            if isinstance(record, Record):
                study.records.add(record)
                best.see(record)
                in_a_row = 0
            else:
                study.records.add_failure(record)
                in_a_row += 1
            done += 1
            progress(done, len(wanted), best.note(what))
            if in_a_row == _FAILURES_IN_A_ROW:
                raise Qua2SeDiMoError(
                    f"{in_a_row} configurations in a row could not be measured, the last: {outcome.error}",
                    "They are recorded as failed. When the cause is mended, try them again with --again.",
                )
        if stop() and done < len(wanted):
            raise KeyboardInterrupt
    return study.records.all(role)


def keep(study: Study, role: str, number: int, configuration: Configuration, measurement: Measurement) -> None:
    """Write one measurement made in this process into the study's records."""
    bits = study.space.average_bits(configuration)
    origin = Origin(host(), "", 1, peak_memory(), versions())
    study.records.add(Record(role, number, configuration, bits, measurement, origin))


# Who measures ------------------------------------------------------------------------------------------------------


def _outcomes(
    study: Study, images: range, jobs: list[Job], workers: Workers, stop: Callable[[], bool], progress: Progress
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
        "qua2sedimo.stages.measuring:open_worker",
        [str(study.folder.resolve()), images.start, images.stop],
        workers.count,
        workers.address,
        lambda ready, count: progress(ready, count, "starting workers"),
        one_first=not study.batch_is_known or study.references.find(images) is None,
    )
    yield from pool.run(jobs, stop)


def open_worker(folder: str, start: int, stop: int) -> Work:
    """The work of a worker that knows a study by its folder: its pipeline, bank and full-precision images, once."""
    from qua2sedimo.study import Study

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


def record_of(study: Study, role: str, outcome: Outcome, configuration: Configuration, start: int) -> Record | Failure:
    """What is written down of an outcome."""
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
