"""What was found, to look at: report, figures, card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qua2sedimo.commands.app import Bits, StudyFolder, app
from qua2sedimo.errors import Qua2SeDiMoError

if TYPE_CHECKING:
    from qua2sedimo.report import ReportData

ChoiceBits = Annotated[
    float | None,
    typer.Option("--bits", help="Show the choice for so many average bits (3.5, or the only one).", min=1.0, max=16.0),
]


@app.command()
def report(study: StudyFolder, bits: Bits = 3.5, images: Annotated[int, typer.Option(min=8)] = 96) -> None:
    """Write report.html: the comparison with uniform quantization, pictures, sensitivity, and the choice."""
    from qua2sedimo.report import write_report
    from qua2sedimo.report.fill.study import report_data
    from qua2sedimo.study.facade import Study
    from qua2sedimo.terminal import comparison_table, console, progress

    opened = Study(study)
    packed = study / f"packed-{bits:g}"
    with progress() as show:
        choice = opened.choose(bits, progress=show)
        opened.export(choice, packed)
        rows = opened.compare(choice, packed, images, show)
        page = write_report(report_data(opened.workspace, choice, rows), study / "report.html")
    console.print(comparison_table(rows, console.width))
    console.print(f"Report  {page}", soft_wrap=True)


@app.command()
def figures(
    study: StudyFolder,
    out: Annotated[
        Path | None, typer.Argument(help="The folder to write; STUDY/figures unless told.", metavar="OUT")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="svg, png or pdf.")] = "pdf",
    other: Annotated[
        Path | None,
        typer.Option("--compare", help="Another study: both in every figure.", metavar="STUDY2"),
    ] = None,
    bits: ChoiceBits = None,
) -> None:
    """Write the report's figures as files for a paper or a model card, with captions; nothing is measured."""
    from qua2sedimo.report.paper.files import check_format, write_figures, write_two_studies
    from qua2sedimo.terminal import console

    check_format(form)
    folder = out or study / ("figures" if other is None else f"figures-with-{other.resolve().name}")
    asked = f" --bits {bits:g}" if bits is not None else ""
    command = f"qua2sedimo figures {study.name} --format {form}{asked}"
    if other is None:
        paths = write_figures(_kept(study, bits), folder, form, [command])
    else:
        names = _different_names(study, other)
        both = {name: _kept(path, bits) for name, path in zip(names, (study, other))}
        paths = write_two_studies(both, folder, form, [f"{command} --compare {other.name}"])
    for path in paths:
        console.print(str(path), soft_wrap=True, markup=False, highlight=False)


def _kept(study: Path, bits: float | None) -> ReportData:
    """The data a study has; what it lacks is told with the command that makes it."""
    from qua2sedimo.report.fill.kept import kept_data
    from qua2sedimo.study.facade import Study
    from qua2sedimo.terminal import console

    data, missing = kept_data(Study(study).workspace, bits)
    for what, command in missing:
        line = f"{study} does not show {what} yet: qua2sedimo {command}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return data


def _different_names(first: Path, second: Path) -> tuple[str, str]:
    """What two studies are called: their folders' names, with as much of the path as tells them apart."""
    a, b = first.resolve(), second.resolve()
    if a == b:
        raise Qua2SeDiMoError(f"--compare: {second} is the study itself", "Name another study's folder.")
    depth = next(n for n in range(1, max(len(a.parts), len(b.parts)) + 1) if a.parts[-n:] != b.parts[-n:])
    return "/".join(a.parts[-depth:]), "/".join(b.parts[-depth:])


@app.command()
def card(
    out: Annotated[Path, typer.Argument(help="An exported pipeline folder.", metavar="OUT")],
    study: Annotated[
        Path | None,
        typer.Option(
            help="The study it came from: quality, pictures, commands. Found if OUT lies in it.", metavar="STUDY"
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The model it came from, hub name or folder; needed where that was a folder and there is no STUDY."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="The base model's licence, if its folder does not say.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option(help="The name it will have on the hub, for the code that loads it.", metavar="ID")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a README.md that is there.")] = False,
) -> None:
    """Add a model card to an export: README.md for the hub, with sizes, quality, options, code and pictures."""
    from qua2sedimo.report.card.markdown import write_card
    from qua2sedimo.report.fill.card import card_data
    from qua2sedimo.terminal import console

    data = card_data(out, study, base, licence, repo)
    console.print(str(write_card(data, out, force)), soft_wrap=True, markup=False, highlight=False)
    if not data.base.licence:
        console.print("The base model's licence is unknown: name it with --license.")
    if not data.base.hub:
        console.print("The base model's name on the hub is unknown: name it with --base OWNER/NAME, if it has one.")
    if data.measured and data.rows:
        console.print("Quality is what evaluate measured on this export; the study's comparison is told after it.")
    if not data.rows and not data.measured:
        console.print("No quality is told: measure it with evaluate, or name a study that has a report with --study.")
