"""Writing the figures: one file each, and the captions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_ours, write_text, write_via
from qua2sedimo.formats.text import printable
from qua2sedimo.report.charts.figures import Figure, all_figures
from qua2sedimo.report.charts.quality import quality_against_bits
from qua2sedimo.report.charts.two_studies import two_study_figures
from qua2sedimo.report.data import MeasuredPoint, MetricInfo, ReportData
from qua2sedimo.report.paper.captions import HOW, captions_of
from qua2sedimo.report.paper.style import COLUMN, FORMATS, PAGE, drawn_width, paper_file

#: Blocks that a column has room for.
_BLOCKS = 12
_BY_BLOCK = ("sensitivity-map", "chosen-options", "sensitivity-by-block")


def write_figures(data: ReportData, folder: Path, form: str = "svg", made_by: Sequence[str] = ()) -> list[Path]:
    """Write ``folder/NAME.FORM`` for every figure of the report, and ``folder/captions.md``; returns the paths.

    ``made_by``: commands, for the captions. Raises ``Qua2SeDiMoError`` for an unknown format, a folder that cannot
    be written, or if there is nothing to draw.
    """
    check_format(form)
    column, page = (all_figures(data, drawn_width(points)) for points in (COLUMN, PAGE))
    blocks = len({row.block for row in data.options or data.choices})
    wide = {figure.name for figure in column if figure.name in _BY_BLOCK and blocks > _BLOCKS}
    wide |= {figure.name for figure in column if figure.name == "pictures" and not figure.half}
    chosen = [(b, PAGE) if b.name in wide else (a, COLUMN) for a, b in zip(column, page)]
    return _written(chosen, folder, form, captions_of([figure for figure, _ in chosen], [data], made_by))


def write_two_studies(
    studies: dict[str, ReportData], folder: Path, form: str = "svg", made_by: Sequence[str] = ()
) -> list[Path]:
    """As :func:`write_figures`, two studies (name → data) in every figure. Raises too if they cannot be compared."""
    check_format(form)
    figures = two_study_figures(studies, drawn_width(COLUMN), drawn_width(PAGE))
    chosen = [(figure, COLUMN if figure.half else PAGE) for figure in figures]
    return _written(chosen, folder, form, captions_of(figures, list(studies.values()), made_by))


def write_frontier(points: Sequence[MeasuredPoint], objective: MetricInfo, path: Path) -> Path:
    """Write quality against average bits as SVG, as wide as a page, with the Pareto frontier; returns the path."""
    chart = quality_against_bits(points, objective, drawn_width(PAGE))
    write_via(path, partial(Path.write_bytes, data=paper_file(chart.to_dict(), PAGE, "svg")))
    return path


def check_format(form: str) -> None:
    """Raise ``Qua2SeDiMoError`` unless figures can be written in this format."""
    if form not in FORMATS:
        raise Qua2SeDiMoError(f"figure format '{form}': expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def _written(figures: Sequence[tuple[Figure, int]], folder: Path, form: str, captions: str) -> list[Path]:
    if not figures:
        raise Qua2SeDiMoError("there is nothing to draw yet", "Measure first: qua2sedimo measure STUDY.")
    page = folder / "captions.md"
    paths = [folder / f"{figure.name}.{form}" for figure, _ in figures]
    check_ours(page, HOW)
    if not page.exists():  # so these figures were not written here before
        for path in paths:
            check_ours(path)
    write_text(page, printable(captions))  # first, so that what is left of an interruption is known
    for path, (figure, points) in zip(paths, figures):
        write_via(path, partial(Path.write_bytes, data=paper_file(figure.chart.to_dict(), points, form)))
    return [*paths, page]
