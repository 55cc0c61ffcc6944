"""Presenting results: report, figures, card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qua2sedimo.commands.app import (
    FRESH_IMAGES,
    Bits,
    ExportFolder,
    RayAddress,
    StudyFolder,
    WorkerCount,
    app,
    check_export,
    workers_of,
)
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.text import command
from qua2sedimo.images.ledger import COMPARISON
from qua2sedimo.terminal.console import console, say
from qua2sedimo.terminal.progress import progress

if TYPE_CHECKING:
    from qua2sedimo.report import ReportData

_PANEL = "Present"


@app.command(rich_help_panel=_PANEL)
def report(
    study: StudyFolder,
    bits: Bits = 3.5,
    images: Annotated[
        int,
        typer.Option(
            "--fresh-images", help="Images that each row of the table is measured on.", min=8, max=COMPARISON.size // 2
        ),
    ] = FRESH_IMAGES,
    workers: WorkerCount = None,
    ray: RayAddress = None,
) -> None:
    """Write report.html: comparison with uniform quantization, pictures, sensitivity, and the choice."""
    from qua2sedimo.report import write_report
    from qua2sedimo.report.fill.study import report_data
    from qua2sedimo.runtime.checkpoint import check_export_folder
    from qua2sedimo.search import Budget, budget_bytes
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.fit import fitted_records
    from qua2sedimo.terminal.comparison import comparison_table

    opened, measuring = Study(study), workers_of(workers, ray)
    packed = study / f"packed-{bits:g}"
    budget_bytes(opened.workspace.reachable, Budget(bits))
    check_export_folder(packed)
    choice = opened.workspace.choice_for(bits)
    if choice is None:
        there = ", ".join(one.name for one in opened.workspace.choices())
        raise Qua2SeDiMoError(
            f"{study} has no choice of {bits:g} bits" + (f", but {there}" if there else ""),
            f"Make it first: {command('choose', study, '--bits', f'{bits:g}')} (or `search`, `quick`).",
        )
    explained = choice.origin != "quick" or (study / "predictor").is_dir()
    if explained:  # it shows sensitivity by the predictor: without a fit it could not be written in the end
        fitted_records(opened.workspace)
    with progress() as show:
        opened.export(choice, packed)
        rows = opened.compare(choice, packed, images, show, workers=measuring)
        page = write_report(report_data(opened.workspace, choice, rows, explained, packed), study / "report.html")
    console.print(comparison_table(rows, console.width))
    say(f"Report  {page}")


@app.command(rich_help_panel=_PANEL)
def figures(
    study: StudyFolder,
    out: Annotated[
        Path | None, typer.Argument(help="The folder to write. Default: STUDY/figures.", metavar="OUT")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="svg, png or pdf.")] = "pdf",
    other: Annotated[
        Path | None,
        typer.Option("--compare", help="Another study, to show both in every figure.", metavar="STUDY2"),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(help="Show the choice for this size. Default: 3.5, or the only choice.", min=1.0, max=16.0),
    ] = None,
) -> None:
    """Write the report's figures as files with captions, for a paper or a model card; measures nothing."""
    from qua2sedimo.formats.files import check_writable
    from qua2sedimo.report.paper.files import check_format, write_figures, write_two_studies

    check_format(form)
    folder = out or study / ("figures" if other is None else f"figures-with-{other.resolve().name}")
    names = _different_names(study, other) if other is not None else ()
    check_writable(folder / "captions.md")
    asked = ["--bits", f"{bits:g}"] if bits is not None else []
    words = ["figures", study.name, "--format", form, *asked]
    if other is None:
        paths = write_figures(_kept(study, bits), folder, form, [command(*words)])
    else:
        both = {name: _kept(path, bits) for name, path in zip(names, (study, other))}
        paths = write_two_studies(both, folder, form, [command(*words, "--compare", other.name)])
    for path in paths:
        say(str(path))


def _kept(study: Path, bits: float | None) -> ReportData:
    """The data a study has; for what is missing the command that makes it is printed."""
    from qua2sedimo.report.fill.kept import kept_data
    from qua2sedimo.study import Study

    data, missing = kept_data(Study(study).workspace, bits)
    for what, missing_command in missing:
        say(f"{study} does not show {what} yet: {missing_command}")
    return data


def _different_names(first: Path, second: Path) -> tuple[str, str]:
    """Names of two studies: those of their folders, with as much of the path as distinguishes them."""
    a, b = first.resolve(), second.resolve()
    if a == b:
        raise Qua2SeDiMoError(f"--compare: {second} is the study itself", "Name another study's folder.")
    depth = next(n for n in range(1, max(len(a.parts), len(b.parts)) + 1) if a.parts[-n:] != b.parts[-n:])
    return "/".join(a.parts[-depth:]), "/".join(b.parts[-depth:])


@app.command(rich_help_panel=_PANEL)
def card(
    out: ExportFolder,
    study: Annotated[
        Path | None,
        typer.Option(
            help="The study it came from, for quality, pictures and commands. Default: the study that OUT lies in.",
            metavar="STUDY",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model it was made from, hub name or folder, if OUT and STUDY do not say."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="The base model's licence, if its folder does not say.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option(help="The export's future name on the hub, for the code that loads it.", metavar="ID")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing README.md.")] = False,
) -> None:
    """Add a model card to an export: README.md with sizes, quality, options, code and pictures."""
    from qua2sedimo.report.card.markdown import check_card, write_card
    from qua2sedimo.report.fill.card import card_data

    check_export(out)
    check_card(out, force)
    data = card_data(out, study, base, licence, repo)
    say(str(write_card(data, out, force)))
    if not data.base.licence:
        say("The base model's licence is unknown: name it with --license.")
    if not data.base.hub:
        say("The base model's name on the hub is unknown: name it with --base OWNER/NAME, if it has one.")
    if data.measured and data.rows:
        say("The card shows the quality that evaluate measured on this export first, then the study's comparison.")
    if not data.rows and not data.measured:
        say("The card shows no quality: measure it with evaluate, or name a study that has a report with --study.")
