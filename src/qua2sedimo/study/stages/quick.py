"""The quick choice: by calibration statistics alone, without measuring a configuration until the final check."""

from __future__ import annotations

import math

from qua2sedimo.measuring.run import Workers
from qua2sedimo.search import Budget, Constraints, allow, best_configurations, budget_bytes, by_gradients
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.stages.polish import checked, polished_and_kept
from qua2sedimo.study.stages.quantize import quantize
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def quick(
    study: Workspace, budget: float | Budget, progress: Progress = silent, constraints: Constraints | None = None,
    workers: Workers = Workers(),
) -> Choice:  # fmt: skip
    """The configuration of least expected damage by gradients within the budget (a number: average bits), polished.

    It minimises the sum over layers of the damage that the damage model expects before anything is measured; without
    gradients, the sum of relative errors. Images are generated in full precision for the statistics, then to decide on
    polishing and for the final check. ``workers`` make statistics and bank. A stored choice made this way is returned
    unchanged.
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    limits = constraints or Constraints()
    budget_bytes(study.reachable, budget, allow(study.reachable, limits, study.names_of))
    quantize(study, progress, workers)
    path, owner = study.choice_path(budget, limits), quick_owner(study)
    if path.exists() and (found := Choice.load(path)).owner == owner and found.measured:
        return found
    allowed = allow(study.space, limits, study.names_of)
    nbytes = budget_bytes(study.space, budget, allowed)
    best = next(best_configurations(study.space, by_gradients(study.unmeasured), nbytes, 1, allowed))
    candidate = Candidate(
        origin="quick", configuration=best, average_bits=study.space.average_bits(best), predicted=math.nan, measured={}
    )
    choice = Choice.of(candidate, study.space, owner, budget, constraints=limits)
    if not study.settings.compensates:
        choice = checked(study, choice, progress=progress)
        study.switch.restore()
    return polished_and_kept(study, choice, progress)


def quick_owner(study: Workspace) -> str:
    """The owner of a choice by statistics alone."""
    return f"quick {study.identity} {study.settings.protocol}"
