"""Where to begin: demo and run do everything, init makes a study to measure stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qua2sedimo import zoo
from qua2sedimo.commands.app import (
    FRESH_IMAGES,
    SAFETY_CHECKER,
    USUAL_IMAGES,
    AlsoMeasured,
    Arguments,
    Batch,
    Bits,
    Component,
    Efforts,
    For,
    Images,
    Keep,
    ListFile,
    Metrics,
    Model,
    Observe,
    Options,
    Packed,
    RayAddress,
    Rounding,
    Samplers,
    Seed,
    StudyFolder,
    StudyPrompts,
    WorkerCount,
    aimed_at,
    app,
    effort_of,
    measured_by,
    onward,
    settings_for,
    workers_of,
)
from qua2sedimo.commands.loading import with_loading
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.study.settings import USUAL_CONFIGURATIONS, Effort, StudySettings
from qua2sedimo.terminal.console import console, say
from qua2sedimo.terminal.progress import progress

if TYPE_CHECKING:
    from qua2sedimo.measuring.run import Workers

_PANEL = "Start"


@app.command(rich_help_panel=_PANEL)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the study, the report and the packed model.")] = Path("demo"),
    model: Annotated[str, typer.Option(help=f"One of {', '.join(zoo.ENTRIES)}.")] = "avatars-pixart",
    bits: Bits = 3.5,
    effort: Efforts = None,
    configurations: AlsoMeasured = None,
    images: Annotated[int, typer.Option(min=2, hidden=True)] = 4,  # few: a demo is to end soon
    workers: WorkerCount = None,
    ray: RayAddress = None,
) -> None:
    """Quantize a small text-to-image model that comes with the package; takes a few minutes, ends with a report."""
    if model not in zoo.ENTRIES:
        raise Qua2SeDiMoError(f"unknown zoo model '{model}'", f"Known: {', '.join(zoo.ENTRIES)}.")
    settings = settings_for(model, None, "{}", "default", images, None, 0)
    asked = effort_of(effort, configurations, settings)
    _everything(out / model, settings, bits, configurations, workers_of(workers, ray), asked, act_bits=(8, 6))


@app.command(rich_help_panel=_PANEL)
@with_loading
def run(
    model: Model,
    study: StudyFolder,
    bits: Bits = 3.5,
    prompt: StudyPrompts = None,
    arguments: Arguments = "{}",
    options: Options = "default",
    program: For = None,
    rounding: Rounding = None,
    observe: Observe = None,
    effort: Efforts = None,
    configurations: AlsoMeasured = None,
    images: Images = USUAL_IMAGES,
    component: Component = None,
    keep: Keep = None,
    seed: Seed = 0,
    workers: WorkerCount = None,
    ray: RayAddress = None,
    batch: Batch = None,
    only_plan: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate time, memory and disk of every stage, from a short trial.")
    ] = False,
    *,
    loading: Loading,
) -> None:
    """Do everything for your own pipeline: observe, quantize, choose, export, compare, report.

    The configuration is chosen by calibration statistics. With --configurations, so many random ones are measured too:
    they show what each layer costs in pictures, and a search with up to twice as many images follows. Run the same
    command again to resume.
    """
    settings = settings_for(
        model, prompt, arguments, options, images, component, seed, keep, rounding, observe, loading
    )  # fmt: skip
    settings = measured_by(aimed_at(settings, program), "spread", None, None, batch)
    asked = effort_of(effort, configurations, settings)
    if only_plan:
        _dry_run(study, settings, bits, configurations or USUAL_CONFIGURATIONS, asked)
        return
    _everything(study, settings, bits, configurations, workers_of(workers, ray), asked)


def _dry_run(folder: Path, settings: StudySettings, bits: float, configurations: int, effort: Effort) -> None:
    """Print what a run would take; a study that is not there yet is made elsewhere, and forgotten."""
    from qua2sedimo.formats.temporary import scratch_folder
    from qua2sedimo.search import Budget, budget_bytes
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.dry_run import dry_run
    from qua2sedimo.terminal.plan import dry_run_table

    with scratch_folder() as elsewhere:
        study = Study.create(folder if (folder / "study.yaml").exists() else elsewhere / "study", settings)
        budget_bytes(study.workspace.reachable, Budget(bits))
        with progress() as report:
            made = study.plan(configurations, progress=report)
        stages = dry_run(study.workspace, made, effort, FRESH_IMAGES)
    console.print(dry_run_table(stages, made))


def _everything(
    folder: Path,
    settings: StudySettings,
    bits: float,
    configurations: int | None,
    workers: Workers,
    effort: Effort,
    compared: int = FRESH_IMAGES,
    act_bits: tuple[int, ...] = (),
) -> None:
    from rich.text import Text

    from qua2sedimo.formats.files import write_text
    from qua2sedimo.formats.text import size_text
    from qua2sedimo.report import write_report
    from qua2sedimo.report.fill.study import report_data
    from qua2sedimo.runtime.checkpoint import check_export_folder
    from qua2sedimo.search import Budget, budget_bytes
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.compare import table_json
    from qua2sedimo.terminal.comparison import comparison_table

    out = folder / f"packed-{bits:g}"
    check_export_folder(out)
    study = Study.create(folder, settings)
    space, graph = study.workspace.reachable, study.workspace.graph
    budget_bytes(space, Budget(bits))
    units = f"{len(space.layers)} weight layers"
    units += " and parts" if any(graph.layers[name].span for name in space.layers) else ""
    sizes = f"{space.weights / 1e6:.2f} M weights, {size_text(2 * space.weights)} in 16 bits"
    say(Text.assemble((settings.model, "bold"), f": {units}, {sizes} → at most {bits:g} average bits"))
    with progress() as report:
        choice = study.run(bits, configurations, report, workers=workers, effort=effort)
        packed = study.export(choice, out)
        rows = study.compare(choice, out, compared, report, act_bits, workers=workers)
        explained = effort != "quick"  # without random configurations there is no predictor
        page = write_report(report_data(study.workspace, choice, rows, explained, out), folder / "report.html")
    write_text(folder / "table.json", table_json(rows))
    console.print(comparison_table(rows, console.width))
    say(
        f"Quantized layers on disk: {packed.quantized_bytes:,} bytes = {packed.average_bits:.4f} average bits "
        f"(found by {choice.origin})"
    )
    say(f"Report             {page}")
    say(f"Packed checkpoint  {out}")


@app.command(rich_help_panel=_PANEL)
@with_loading
def init(
    model: Model,
    study: StudyFolder,
    prompt: StudyPrompts = None,
    arguments: Arguments = "{}",
    options: Options = "default",
    program: For = None,
    rounding: Rounding = None,
    observe: Observe = None,
    images: Images = USUAL_IMAGES,
    component: Component = None,
    keep: Keep = None,
    seed: Seed = 0,
    sampler: Samplers = "spread",
    listed: ListFile = None,
    metric: Metrics = None,
    batch: Batch = None,
    packed: Packed = False,
    *,
    loading: Loading,
) -> None:
    """Make a study folder with its study.yaml, to edit and to measure stage by stage."""
    from qua2sedimo.images.generate import has_safety_checker
    from qua2sedimo.study import Study

    settings = settings_for(
        model, prompt, arguments, options, images, component, seed, keep, rounding, observe, loading, packed
    )  # fmt: skip
    made = Study.create(study, measured_by(aimed_at(settings, program), sampler, listed, metric, batch))
    if has_safety_checker(made.workspace.pipeline):
        say(SAFETY_CHECKER)
    settings = made.workspace.settings
    say(f"{study / 'study.yaml'}: {len(settings.inputs)} inputs. {onward(study, settings.compensates)}")
