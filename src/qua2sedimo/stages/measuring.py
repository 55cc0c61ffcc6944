"""Measuring: random configurations of a study, and others on request, into records.db."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qua2sedimo.evaluation import Measurement
from qua2sedimo.options import Configuration
from qua2sedimo.records import Record
from qua2sedimo.stages.progress import Progress, silent
from qua2sedimo.versions import versions

if TYPE_CHECKING:
    from qua2sedimo.study import Study


def measure_samples(study: Study, configurations: int, progress: Progress = silent) -> list[Record]:
    """Measure random configurations until ``configurations`` exist; those measured before are kept."""
    study.sampler.require(configurations)
    done = {record.number for record in study.records.all("sample")}
    measure = study.measurer(0, study.settings.images)
    try:
        for number in range(configurations):
            if number not in done:
                configuration = study.sampler(number)
                keep(study, "sample", number, configuration, measure(configuration))
            progress(number + 1, configurations, "measuring configurations")
    finally:
        study.switch.restore()
    return study.records.all("sample")


def measure_fresh(
    study: Study, configurations: Sequence[Configuration], what: str, progress: Progress = silent
) -> list[Measurement]:
    """Candidates, each on the same fresh images, twice as many as a sample has; those measured before are read."""
    start = study.settings.images
    measure = study.measurer(start, 3 * start)
    before = study.records.all("candidate")
    done = {r.configuration.digest: r.measurement for r in before}
    number = len(before)
    try:
        for i, configuration in enumerate(configurations):
            if configuration.digest not in done:
                done[configuration.digest] = measure(configuration)
                keep(study, "candidate", number, configuration, done[configuration.digest])
                number += 1
            progress(i + 1, len(configurations), what)
    finally:
        study.switch.restore()
    return [done[configuration.digest] for configuration in configurations]


def keep(study: Study, role: str, number: int, configuration: Configuration, measurement: Measurement) -> None:
    """Write one measurement into the study's records."""
    bits = study.space.average_bits(configuration)
    study.records.add(Record(role, number, configuration, bits, measurement), versions())
