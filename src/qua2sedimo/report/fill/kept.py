"""Figures from what is in a study's folder: nothing is measured, and missing parts are named."""

from __future__ import annotations

from qua2sedimo.formats.text import command
from qua2sedimo.report.data import ReportData
from qua2sedimo.report.fill.study import report_data
from qua2sedimo.study.stages.compare import kept_rows
from qua2sedimo.study.stages.fit import kept_owner
from qua2sedimo.study.workspace import Workspace


def kept_data(study: Workspace, bits: float | None = None) -> tuple[ReportData, list[tuple[str, str]]]:
    """The data a study has, and its missing parts: (figures, the command that makes them possible).

    They are of the choice for ``bits``; by default of that for 3.5 bits, or of the only one.
    """
    choice = study.choice_for(bits)
    rows = kept_rows(study, choice)
    measured = bool(study.records.all("sample"))
    fitted = measured and kept_owner(study) is not None
    asked = ["--bits", f"{bits:g}"] if bits is not None else []
    ours = any(row.kind == "ours" for row in rows)
    wanted = [
        (not measured, "quality against bits", "measure", []),
        (not fitted, "sensitivity and the predictor's quality", "fit", []),
        (choice is None, "what was chosen", "choose", asked),
        (len(rows) < 2, "uniform quantization beside ours, and the pictures of both", "report", asked),
    ]
    if choice is not None and len(rows) >= 2 and not ours:
        wanted.append((True, "the pictures of what was chosen", "report", ["--bits", f"{choice.bits_asked:g}"]))
    missing = [(what, command(name, study.folder, *options)) for absent, what, name, options in wanted if absent]
    return report_data(study, choice, rows, fitted), missing
