"""What a whole run will cost, stage by stage, from a plan: nothing but the plan's trial is done."""

from __future__ import annotations

from dataclasses import dataclass

from qua2sedimo.study.settings import Effort
from qua2sedimo.study.stages.compare import OUTSIDE, UNIFORM
from qua2sedimo.study.stages.last_comparison import COMPARED
from qua2sedimo.study.stages.plan import Plan
from qua2sedimo.study.stages.polish import CHECKED, DECIDING
from qua2sedimo.study.stages.search import least_images
from qua2sedimo.study.workspace import Workspace

_POLISHING_PASSES = 4  # over the recorded calls, each as long as generating them


@dataclass(frozen=True)
class StageCost:
    """About what a stage takes: ``seconds``, ``images`` that it generates, bytes that it leaves on ``disk``."""

    name: str
    seconds: float
    images: int = 0
    disk: int = 0


def dry_run(study: Workspace, plan: Plan, effort: Effort, compared: int) -> list[StageCost]:
    """The stages of :func:`~qua2sedimo.study.stages.search.run`, then export and comparison of ``compared`` images.

    An upper bound where a stage may end early (a search, the images that decide on polishing). A study that has some
    stages already lacks these.
    """
    image = plan.trial.total / plan.trial.images  # seconds of one, with its share of switching and comparing
    stages = []
    if plan.observe:
        stages.append(StageCost("observe calibration statistics", plan.observe, study.observed_images, plan.statistics))
    if plan.quantize:
        stages.append(StageCost("quantize every option of every layer", plan.quantize, 0, plan.bank))
    if effort != "quick":
        count = plan.left * plan.images
        stages.append(
            StageCost("measure random configurations", plan.workers[1], count, plan.disk - plan.bank - plan.statistics)
        )
        budget = max(least_images(), 2 * plan.configurations * plan.images) if effort == "search" else 0
        if budget:
            stages.append(StageCost("search near the size, at most", budget * image, budget))
    if effort != "paper" and study.settings.compensates:
        polished = 2 if effort == "search" else 1  # a search also polishes what gradients choose
        images = polished * 3 * DECIDING + (3 * COMPARED if polished > 1 else 2 * CHECKED)
        each = max(1, len(study.reachable.layers)) / sum(map(len, study.reachable.options.values()))
        rounding = each * (plan.quantize or 0.0)
        seen = _POLISHING_PASSES * plan.trial.generate / plan.trial.images * study.observed_images
        choice = 2 * study.candidates.weights  # at most: what a choice's own weights take
        seconds = polished * (rounding + seen) + images * image
        stages.append(StageCost("polish the choice and check it", seconds, images, choice))
    rows = len(UNIFORM) + len(OUTSIDE) + 3  # full precision twice, for distances, and ours
    stages.append(StageCost("export and load again, compare", plan.load + rows * compared * image, rows * compared))
    return stages
