"""Quantizing and measuring: quantize, measure, records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qua2sedimo.commands.app import MOST, SAFETY_CHECKER, RayAddress, StudyFolder, WorkerCount, app, onward, workers_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.terminal.console import say
from qua2sedimo.terminal.progress import progress

_PANEL = "Measure"


@app.command(rich_help_panel=_PANEL)
def observe(study: StudyFolder, workers: WorkerCount = None, ray: RayAddress = None) -> None:
    """Generate images in full precision and keep what each layer sees, for rounding; other commands do it when they
    need it."""
    from qua2sedimo.formats.text import command, size_text
    from qua2sedimo.study import Study

    opened, observing = Study(study), workers_of(workers, ray)
    with progress() as report:
        found = opened.observe(report, observing)
    nbytes = sum(path.stat().st_size for path in found.folder.rglob("*.safetensors"))
    units = sum(len(source.units) for source in found.sources)
    gradients = "with gradients" if found.has_gradients else "without gradients, which did not fit into memory"
    say(
        f"{found.images} images, {len(found.sources)} inputs of {units} layers, {gradients}: "
        f"{size_text(nbytes)} in {found.folder}. Next: {command('quantize', study)}"
    )
    for unit, note in found.notes().items():
        say(f"{unit}: {note}")


@app.command(rich_help_panel=_PANEL)
def quantize(study: StudyFolder, workers: WorkerCount = None, ray: RayAddress = None) -> None:
    """Quantize every layer under every option, once; other commands do it when they need it."""
    from qua2sedimo.formats.text import size_text
    from qua2sedimo.study import Study

    opened, quantizing = Study(study), workers_of(workers, ray)
    with progress() as report:
        opened.quantize(report, quantizing)
    nbytes = sum(path.stat().st_size for path in (study / "bank").glob("*.safetensors"))
    options = sum(map(len, opened.workspace.space.options.values()))
    say(
        f"{options} options of {len(opened.workspace.space.layers)} layers in {study / 'bank'}: {size_text(nbytes)}. "
        f"{onward(study, opened.workspace.settings.compensates)}"
    )


@app.command(rich_help_panel=_PANEL)
def measure(
    study: StudyFolder,
    configurations: Annotated[int, typer.Option(help="Configurations to measure in total.", min=1, max=MOST)] = 100,
    workers: WorkerCount = None,
    ray: RayAddress = None,
    again: Annotated[bool, typer.Option("--again", help="Also retry configurations that failed before.")] = False,
) -> None:
    """Measure random configurations; run the same command again to resume."""
    from qua2sedimo.formats.text import command
    from qua2sedimo.images.generate import has_safety_checker
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.measure import check_samples

    opened, measuring = Study(study), workers_of(workers, ray)
    check_samples(opened.workspace, configurations)
    with progress() as report:
        opened.quantize(report, measuring)
        records = opened.measure(configurations, report, workers=measuring, again=again)
    if measuring.here and has_safety_checker(opened.workspace.pipeline):
        say(SAFETY_CHECKER)
    failed = opened.workspace.records.failed("sample")
    if failed:
        say(f"{len(failed)} failed: `{command('records', study)}` lists their errors, --again retries them.")
    if not records:
        raise Qua2SeDiMoError(f"{study}: no configuration could be measured; the first: {failed[0].error}")
    objective = opened.workspace.objective
    best = max(records, key=objective.gain)
    say(
        f"{len(records)} configurations in {study / 'records.db'}; best {objective.text} {objective.value(best):.2f} "
        f"at {best.average_bits:.2f} bits. Next: {command('fit', study)}"
    )


@app.command(rich_help_panel=_PANEL)
def records(
    study: StudyFolder,
    form: Annotated[
        str | None, typer.Option("--format", help="csv, json or parquet. Default: the ending of FILE, else csv.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.", metavar="FILE")] = None,
    repaired: Annotated[
        bool,
        typer.Option("--repair", help="Repair a damaged records.db: keep every undamaged measurement."),
    ] = False,
) -> None:
    """Print all measurements as a table: one line per configuration, with metrics, seconds, memory and errors."""
    from qua2sedimo.records import FORMATS, Records, content, export, repair

    if repaired:
        whole, lost, damaged = repair(study / "records.db")
        kept_at = f"; the damaged file is {damaged}" if damaged else ", nothing is damaged"
        say(f"{whole} measurements are undamaged, {lost} were lost{kept_at}")
        return
    kept = Records.existing(study / "records.db")
    if form is None:
        form = out.suffix.removeprefix(".") if out is not None and out.suffix.removeprefix(".") in FORMATS else "csv"
    if out is None:
        typer.echo(content(kept, form), nl=False)
    else:
        export(kept, form, out)
        typer.echo(f"{len(kept.all()) + len(kept.failed())} records in {out}")
