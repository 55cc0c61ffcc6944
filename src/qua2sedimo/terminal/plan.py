"""The plan of a study: where a configuration's seconds go, and what all of them take."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from qua2sedimo.formats.text import size_text
from qua2sedimo.study.stages.dry_run import StageCost
from qua2sedimo.study.stages.plan import Plan
from qua2sedimo.terminal.console import table
from qua2sedimo.terminal.progress import duration


def plan_tables(plan: Plan) -> list[Table]:
    """One configuration's seconds; then what all of them take, and how workers or fewer images change that."""
    trial = plan.trial
    title = f"One configuration: {plan.images} images, {plan.batch} at once, on {plan.device}"
    one = table("", "seconds", title=title)
    one.add_row("the pipeline called by itself", f"{trial.bare:.2f}")
    one.add_row("switch weights", f"{trial.switch:.3f}")
    one.add_row("generate images", f"{trial.generate:.2f}")
    one.add_row("compare them", f"{trial.metrics:.3f}")
    one.add_row("total", f"{trial.total:.2f} ({trial.overhead:+.1%} over the pipeline)", style="bold")
    done = f", {plan.measured} measured already" if plan.measured else ""
    title = f"{plan.configurations} configurations{done}: {plan.left * plan.images:,} images"
    every = table("", "time", title=title)
    if plan.observe:
        every.add_row("observe calibration statistics, once", duration(plan.observe))
    if plan.quantize:
        every.add_row("quantize every option of every layer, once", duration(plan.quantize))
    for workers, seconds in plan.workers.items():
        gain = plan.workers[1] / seconds if seconds else 1.0
        name = "measure, one worker" if workers == 1 else f"  --workers {workers} (at best {gain:.2f}× as fast)"
        every.add_row(name, duration(seconds), style="bold" if workers == 1 else None)
    for images in (plan.images // 2, plan.images // 4):
        if images >= 2:
            every.add_row(f"  with {images} images a configuration", duration(plan.seconds_with(images)))
    every.add_row("memory, each worker", size_text(plan.memory))
    every.add_row("  of it copies of original weights", size_text(plan.kept_weights))
    every.add_row("disk", size_text(plan.disk))
    return [one, every]


def dry_run_table(stages: Sequence[StageCost], plan: Plan) -> Table:
    """The stages of a run, one a line, and all together."""
    found = table("", "time", "images", "disk", title=f"Estimate for this run, on {plan.device}")
    for stage in stages:
        images, disk = (f"{stage.images:,}" if stage.images else ""), (size_text(stage.disk) if stage.disk else "")
        found.add_row(stage.name, duration(stage.seconds), images, disk)
    seconds, images, disk = (sum(getattr(s, name) for s in stages) for name in ("seconds", "images", "disk"))
    found.add_row("all", duration(seconds), f"{images:,}", size_text(disk), style="bold")
    found.add_row("memory, at a time", size_text(plan.memory))
    return found
