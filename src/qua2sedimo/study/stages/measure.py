"""Measuring random configurations of a study, or those of the user's list, into records.db."""

from __future__ import annotations

import itertools

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.ledger import LEARNING
from qua2sedimo.measuring.run import Request, Workers
from qua2sedimo.records import Failure, Record
from qua2sedimo.study.measurements import measure_requests
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def measure(
    study: Workspace,
    configurations: int,
    progress: Progress = silent,
    workers: Workers = Workers(),
    again: bool = False,
) -> list[Record]:
    """Measure configurations of the seed's sequence until ``configurations`` are measured; returns all of them.

    Recorded measurements are reused. A failed configuration is replaced by the next of the sequence, if there is one;
    with ``again``, failed ones are retried.
    """
    check_samples(study, configurations)
    images = LEARNING.images(study.settings.images)
    numbers = itertools.count() if study.sampler.count is None else range(study.sampler.count)
    sequence = (Request(number, study.sampler(number), images) for number in numbers)
    what = "measuring configurations"
    measure_requests(
        study, "sample", sequence, [images], what, progress, workers, again=again, count=configurations
    )  # fmt: skip
    return study.records.all("sample")


def check_samples(study: Workspace, configurations: int) -> None:
    """Raise :class:`Qua2SeDiMoError` if there are fewer configurations, or a measured entry of the list has changed."""
    sampler = study.sampler_of(study.reachable)
    sampler.require(configurations)
    if sampler.name != "list" or not study.is_observed:
        return
    recorded: list[Record | Failure] = [*study.records.all("sample"), *study.records.failed("sample")]
    for kept in recorded:
        if kept.number >= len(sampler.listed) or sampler.listed[kept.number] != kept.configuration:
            raise Qua2SeDiMoError(
                f"entry {kept.number + 1} of {study.settings.configurations} is not the one that was measured",
                "Restore it and add new entries at the end, or create another study for the new list.",
            )
