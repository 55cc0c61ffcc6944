"""Every chart of the report as a file, for papers and model cards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.files import write_via
from qua2sedimo.report.charts import all_figures
from qua2sedimo.report.data import ReportData
from qua2sedimo.report.render import png_of, svg_of


def write_figures(data: ReportData, folder: Path, format: Literal["svg", "png"] = "svg") -> list[Path]:
    """Write ``folder/<figure>.<format>`` for every figure of the report; returns the paths.

    Raises ``Qua2SeDiMoError`` for another format or a folder that cannot be written.
    """
    if format not in ("svg", "png"):
        raise Qua2SeDiMoError(f"figure format '{format}': expected svg or png")
    paths = []
    for figure in all_figures(data, width=640):
        specification = {**figure.chart.to_dict(), "background": "white", "padding": 8}
        content = svg_of(specification).encode() if format == "svg" else png_of(specification)
        path = folder / f"{figure.name}.{format}"
        write_via(path, partial(Path.write_bytes, data=content))
        paths.append(path)
    return paths
