"""A study's measurements that models may be fitted to, as evidence for the proposers of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.ledger import LEARNING
from qua2sedimo.measuring.run import Workers
from qua2sedimo.options import Configuration, Option
from qua2sedimo.records import Record
from qua2sedimo.search import Evidence, Measured
from qua2sedimo.study.measurements import measure_all, per_image
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

#: Roles of records that models may be fitted to, in the order of the damage model's kinds.
ROLES = ("single", "sample", "round")
#: Images per cheap measurement: of a single layer, or of a candidate of a round.
FEW = 4


def evidence(study: Workspace, roles: Sequence[str] = ROLES) -> Evidence:
    """All measurements of these roles, each with the images it was measured on.

    Their order does not depend on that in which they were measured: sums round alike whatever workers did.
    """
    check_objective(study)
    records = [(ROLES.index(role), r) for role in roles for r in study.learning_records(role)]
    records.sort(key=lambda pair: (pair[0], pair[1].configuration.digest, pair[1].measurement.start))
    measured = [
        Measured(kind, r.configuration, float(np.mean(values)), (r.measurement.start, len(values)))
        for kind, r in records
        if math.isfinite(np.mean(values := per_image(study, r.measurement)))
    ]
    return replace(study.unmeasured, measured=measured)


def check_objective(study: Workspace) -> None:
    """Raise :class:`Qua2SeDiMoError` unless the objective is in decibels: the damage model is one of squared errors."""
    if not study.objective.in_decibels:
        raise Qua2SeDiMoError(
            f"objective '{study.settings.objective}': the damage model needs one in decibels",
            "Use `objective: psnr`, or `0.5*psnr + 0.5*features_db`, with factors that add up to 1.",
        )


def measure_singles(
    study: Workspace, images: int = FEW, progress: Progress = silent, workers: Workers = Workers()
) -> list[Record]:
    """Measure each layer alone at its smallest option, the others in 16 bits; recorded measurements are reused."""
    wanted = [Configuration({n: smallest_option(study, n)}) for n in study.space.layers]
    measure_all(study, "single", wanted, LEARNING.images(images), "measuring layers alone", progress, workers)
    return study.records.all("single")


def smallest_option(study: Workspace, layer: str) -> Option:
    """The option of fewest bytes, whose damage is clearest; among several that of least error."""
    errors, shape = study.bank.errors[layer], study.space.shapes[layer]
    return min(study.space.options[layer], key=lambda o: (o.nbytes(shape), errors[o].relative))
