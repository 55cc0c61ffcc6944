"""What was found, to look at: report."""

from __future__ import annotations

from typing import Annotated

import typer

from qua2sedimo.commands.app import Bits, StudyFolder, app


@app.command()
def report(study: StudyFolder, bits: Bits = 3.5, images: Annotated[int, typer.Option(min=8)] = 96) -> None:
    """Write report.html: the comparison with uniform quantization, pictures, sensitivity, and the choice."""
    from qua2sedimo.comparison import compare
    from qua2sedimo.report import write_report
    from qua2sedimo.report.assemble import report_data
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import comparison_table, console, progress

    opened = Study(study)
    packed = study / f"packed-{bits:g}"
    with progress() as show:
        choice = opened.choose(bits, progress=show)
        opened.export(bits, packed)
        rows = compare(opened, choice, packed, images, show)
        page = write_report(report_data(opened, choice, rows), study / "report.html")
    console.print(comparison_table(rows, console.width))
    console.print(f"Report  {page}", soft_wrap=True)
