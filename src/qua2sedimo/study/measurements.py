"""A study's measurements: of those requested, missing ones are measured, and all are returned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from qua2sedimo.measuring.run import Request, Workers, run
from qua2sedimo.metrics.catalogue import metric
from qua2sedimo.options import Configuration
from qua2sedimo.records import Record
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.study.worker import crew
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def measure_requests(
    study: Workspace, role: str, requests: Iterable[Request], ranges: Sequence[range], what: str,
    progress: Progress = silent, workers: Workers = Workers(), **more: Any,
) -> None:  # fmt: skip
    """Measure and record requests of a role; the full-precision images of ``ranges`` are generated first.

    ``more`` is passed to :func:`qua2sedimo.measuring.run.run`.
    """
    with crew(study, workers, progress) as at_work:

        def prepare() -> None:
            jobs = [{"do": "reference", "start": r.start, "stop": r.stop} for r in _without_reference(study, ranges)]
            at_work.do_all(jobs, "generating full-precision images", progress)

        kept = study.records, study.space, study.objective
        run(role, requests, at_work, *kept, what, progress, prepare=prepare, **more)


def _without_reference(study: Workspace, ranges: Sequence[range]) -> list[range]:
    """The ranges whose full-precision images are not stored in the study's folder."""
    names = [*study.objective.metrics, *study.settings.metrics]
    latents = any(metric(name).of == "latents" for name in names)
    distinct = list(dict.fromkeys(ranges))
    return [r for r in distinct if not study.batch_is_known or study.references.find(r, latents) is None]


def measure_all(
    study: Workspace, role: str, configurations: Sequence[Configuration], images: range | Sequence[range], what: str,
    progress: Progress = silent, workers: Workers = Workers(),
) -> list[Measurement | None]:  # fmt: skip
    """Measurements of each configuration on these images, or on its own of several ranges.

    Only images not yet measured in this role are measured. None stands for a configuration that could not be measured;
    the next call retries it.
    """
    ranges = [images] * len(configurations) if isinstance(images, range) else list(images)
    known = _by_digest(study.records.all(role))
    numbers = {digest: records[0].number for digest, records in known.items()}
    numbers |= {f.configuration.digest: f.number for f in study.records.failed(role)}
    following = max(numbers.values(), default=-1) + 1
    requests = []
    for configuration, asked in zip(configurations, ranges, strict=True):
        if configuration.digest not in numbers:
            numbers[configuration.digest], following = following, following + 1
        number = numbers[configuration.digest]
        requests += [Request(number, configuration, r) for r in _lacking(known.get(configuration.digest, []), asked)]
    measured_on = [request.images for request in requests]
    measure_requests(study, role, requests, measured_on, what, progress, workers, again=True)
    known = _by_digest(study.records.all(role))
    return [_joined(known.get(c.digest, []), asked) for c, asked in zip(configurations, ranges)]


def kept_measurement(
    study: Workspace, role: str, configuration: Configuration, images: range
) -> Measurement | None:  # fmt: skip
    """The recorded measurement of a configuration in this role on these images; None unless all were measured."""
    return _joined([r for r in study.records.all(role) if r.configuration == configuration], images)


def _by_digest(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.configuration.digest, []).append(record)
    return found


def _pieces(records: Sequence[Record], images: range) -> list[tuple[range, Measurement | None]]:
    """The images as consecutive ranges, each with the measurement that covers it, or None."""
    pieces: list[tuple[range, Measurement | None]] = []
    spans = [(m, range(m.start, m.start + m.images)) for m in (r.measurement for r in records)]
    at = images.start
    while at < images.stop:
        holding = [(m, span) for m, span in spans if at in span]
        if holding:
            held, span = max(holding, key=lambda pair: pair[1].stop)
            pieces.append((range(at, min(images.stop, span.stop)), held))
        else:
            stop = min([images.stop, *(span.start for _, span in spans if span.start > at)])
            pieces.append((range(at, stop), None))
        at = pieces[-1][0].stop
    return pieces


def _lacking(records: Sequence[Record], images: range) -> list[range]:
    return [part for part, held in _pieces(records, images) if held is None]


def _joined(records: Sequence[Record], images: range) -> Measurement | None:
    """One measurement of all images; None if some are missing. Set metrics are dropped when several are joined."""
    pieces = _pieces(records, images)
    if any(held is None for _, held in pieces):
        return None
    held = [(part, m) for part, m in pieces if m is not None]
    if len(held) == 1 and held[0][1].start == images.start and held[0][1].images == len(images):
        return held[0][1]
    values = {
        name: [v for part, m in held for v in m.values[name][part.start - m.start : part.stop - m.start]]
        for name in held[0][1].values
    }
    return Measurement(images.start, values, sum(m.seconds for _, m in held))


def images_spent(study: Workspace, role: str | None = None, only: Sequence[Configuration] | None = None) -> int:
    """Images spent on measurements, without full precision; optionally only of a role, or of these configurations."""
    digests = None if only is None else {c.digest for c in only}
    records = [r for r in study.records.all(role) if digests is None or r.configuration.digest in digests]
    return sum(r.measurement.images for r in records)


def per_image(study: Workspace, measurement: Measurement) -> np.ndarray:
    """The objective of each image [images], for an objective with per-image values."""
    return np.asarray(study.objective.of_images(measurement.values), dtype=np.float64)
