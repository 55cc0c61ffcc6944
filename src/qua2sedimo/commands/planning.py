"""Planning a study before it is measured: plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from qua2sedimo.commands.app import StudyFolder, app

if TYPE_CHECKING:
    from rich.table import Table

    from qua2sedimo.study.stages.plan import Plan


@app.command()
def plan(
    study: StudyFolder,
    configs: Annotated[int, typer.Option(help="Configurations to measure in all.", min=1)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say how long measuring will take here, and what workers or fewer images would change, from a short trial."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    if as_json:
        print(json.dumps(opened.plan(configs).document()))
        return
    with progress() as report:
        made = opened.plan(configs, progress=report)
    for table in plan_tables(made):
        console.print(table)
    console.print(f"Next: qua2sedimo measure {study} --configurations {configs}", soft_wrap=True)


def plan_tables(plan: Plan) -> list[Table]:
    """Where a configuration's seconds go; what all of them take, and how that changes."""
    from qua2sedimo.terminal import size

    trial = plan.trial
    one = _table(f"One configuration: {plan.images} images, {plan.batch} at once, on {plan.device}", "", "seconds")
    one.add_row("the pipeline called by itself", f"{trial.bare:.2f}")
    one.add_row("switch weights", f"{trial.switch:.3f}")
    one.add_row("generate images", f"{trial.generate:.2f}")
    one.add_row("compare them", f"{trial.metrics:.3f}")
    one.add_row("in all", f"{trial.total:.2f} ({trial.overhead:+.1%} to the pipeline)", style="bold")
    done = f", {plan.measured} measured already" if plan.measured else ""
    every = _table(f"{plan.configurations} configurations{done}: {plan.left * plan.images:,} images", "", "time")
    if plan.quantize:
        every.add_row("quantize every option of every layer, once", duration(plan.quantize))
    for workers, seconds in plan.workers.items():
        gain = plan.workers[1] / seconds if seconds else 1.0
        name = "measure, one worker" if workers == 1 else f"  --workers {workers} (at best {gain:.2f}× as fast)"
        every.add_row(name, duration(seconds), style="bold" if workers == 1 else None)
    for images in (plan.images // 2, plan.images // 4):
        if images >= 2:
            every.add_row(f"  with {images} images a configuration", duration(plan.seconds_with(images)))
    every.add_row("memory, each worker", size(plan.memory))
    every.add_row("  of it copies of original weights", size(plan.kept_weights))
    every.add_row("disk", size(plan.disk))
    return [one, every]


def duration(seconds: float) -> str:
    """``95`` → ``1 min 35 s``; the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table
