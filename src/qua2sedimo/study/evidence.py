"""What a study knows: its measurements, of every kind, as evidence for the proposers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option
from qua2sedimo.records import Record
from qua2sedimo.search import Evidence, Features, Measured
from qua2sedimo.study.stages.measure import keep
from qua2sedimo.system.progress import Progress, silent

if TYPE_CHECKING:
    from qua2sedimo.measuring.measurer import Measurer
    from qua2sedimo.records.measurement import Measurement
    from qua2sedimo.study.facade import Study

#: Roles of records, in the order of the additive model's kinds.
ROLES = ("single", "sample", "round")
#: Images of a cheap measurement: one layer alone, or a candidate of a round.
FEW = 4
#: Prior standard deviations: of the power of the error with which damage grows, and of operations, blocks and layers.
_EXPONENT, _GROUPS = 0.4, 0.6


def evidence(study: Study, roles: Sequence[str] = ROLES) -> Evidence:
    """All measurements of these roles, each with which images it was measured on."""
    check_objective(study)
    errors = {n: {o: e.relative_mse for o, e in study.bank.errors[n].items()} for n in study.space.layers}
    records = [(ROLES.index(role), r) for role in roles for r in study.records.all(role)]
    measured = [
        Measured(kind, r.configuration, float(np.mean(values)), (r.measurement.start, len(values)))
        for kind, r in records
        if math.isfinite(np.mean(values := per_image(study, r.measurement)))
    ]
    return Evidence(study.space, errors, _features(study), measured)


def _features(study: Study) -> Features:
    """The predictor's features of every option, and the prior of what each adds."""
    encoding = study.encoding
    values, (mean, deviation) = encoding.options()[..., :-1].double().numpy(), encoding.prior
    deviation = deviation.copy()
    deviation[encoding.groups] = _GROUPS  # few records are known here; the predictor's wider prior was tuned to many
    deviation[0] = _EXPONENT  # layers alone, all at one option, hardly tell how damage grows with the error
    return Features(values, encoding.offered.numpy(), mean, deviation)


def check_objective(study: Study) -> None:
    """Raise unless the objective is in decibels, of which the additive model makes squared errors."""
    if not study.objective.in_decibels:
        raise Qua2SeDiMoError(
            f"objective '{study.settings.objective}': the additive model needs one in decibels",
            "Use `objective: psnr`, or `0.5*psnr + 0.5*features_db`, in which shares add up to 1.",
        )


def measure_singles(study: Study, images: int = FEW, progress: Progress = silent) -> list[Record]:
    """Measure each layer alone at its smallest option, the others in 16 bits; those measured before are kept."""
    wanted = [Configuration({n: smallest_option(study, n)}) for n in study.space.layers]
    measure_all(study, "single", wanted, range(images), "measuring layers alone", progress)
    return study.records.all("single")


def smallest_option(study: Study, layer: str) -> Option:
    """The option of fewest bytes, of equal ones that of least error: its damage stands out most."""
    errors = study.bank.errors[layer]
    shape = study.space.shapes[layer]
    return min(study.space.options[layer], key=lambda o: (o.nbytes(shape), errors[o].relative_mse))


def measure_all(
    study: Study,
    role: str,
    configurations: Sequence[Configuration],
    images: range | Sequence[range],
    what: str,
    progress: Progress = silent,
    measurers: dict[range, Measurer] | None = None,
) -> list[Measurement]:
    """Measurements of each configuration on these images, or on its own of several ranges; those made before in this
    role are read.

    ``measurers`` keeps the full-precision images of a range for the next call.
    """
    measurers = {} if measurers is None else measurers
    ranges = [images] * len(configurations) if isinstance(images, range) else list(images)
    records = study.records.all(role)
    done = {(r.configuration.digest, r.measurement.start): r for r in records}
    numbers = {r.configuration.digest: r.number for r in records}
    following = max(numbers.values(), default=-1) + 1
    try:
        for i, (configuration, part) in enumerate(zip(configurations, ranges, strict=True)):
            key = configuration.digest, part.start
            if key not in done or len(per_image(study, done[key].measurement)) < len(part):
                if part not in measurers:
                    measurers[part] = study.measurer(part.start, part.stop)
                    _ = measurers[part].reference
                if len(configuration) < len(study.space.layers):
                    study.switch.restore()  # what a configuration leaves out is in 16 bits
                if key[0] not in numbers:
                    numbers[key[0]], following = following, following + 1
                made = measurers[part](configuration)
                done[key] = _keep(study, role, numbers[key[0]], configuration, made)
            progress(i + 1, len(configurations), what)
    finally:
        study.switch.restore()
    return [done[c.digest, part.start].measurement for c, part in zip(configurations, ranges)]


def images_spent(study: Study, role: str | None = None, only: Sequence[Configuration] | None = None) -> int:
    """Images the study's measurements have cost, full precision's not counted; of a role, and of these alone."""
    digests = None if only is None else {c.digest for c in only}
    records = [r for r in study.records.all(role) if digests is None or r.configuration.digest in digests]
    return sum(len(per_image(study, r.measurement)) for r in records)


def per_image(study: Study, measurement: Measurement) -> list[float]:
    """The objective of each image, in dB."""
    return [float(v) for v in study.objective.of_images(measurement.values)]


def _keep(study: Study, role: str, number: int, configuration: Configuration, measurement: Measurement) -> Record:
    keep(study, role, number, configuration, measurement)
    return Record(role, number, configuration, study.space.average_bits(configuration), measurement)
