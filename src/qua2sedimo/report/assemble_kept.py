"""What a study has left in its folder, for figures and cards: nothing is measured, and what is missing is named."""

from __future__ import annotations

from dataclasses import dataclass

from qua2sedimo.report.assemble import report_data
from qua2sedimo.report.data import ReportData
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.compare import kept_rows
from qua2sedimo.study.stages.fit import kept_owner
from qua2sedimo.study.workspace import Workspace


@dataclass(frozen=True)
class Kept:
    """The data, the choice they are of, and what is missing: (figures, the command that makes them possible)."""

    data: ReportData
    choice: Choice | None
    missing: list[tuple[str, str]]


def kept_data(study: Workspace, bits: float | None = None) -> Kept:
    """Data of what is there; ``bits`` says which choice is meant, otherwise that for 3.5 bits, or the only one."""
    choice = study.choice_for(bits)
    rows = kept_rows(study, choice)
    measured = bool(study.records.all("sample"))
    fitted = measured and kept_owner(study) is not None
    asked = f" --bits {bits:g}" if bits is not None else ""
    missing = []
    if not measured:
        missing.append(("quality against bits", f"measure {study.folder}"))
    if not fitted:
        missing.append(("sensitivity and the predictor's quality", f"fit {study.folder}"))
    if choice is None:
        missing.append(("what was chosen", f"choose {study.folder}{asked}"))
    if len(rows) < 2:
        missing.append(("uniform quantization beside ours, and the pictures of both", f"report {study.folder}{asked}"))
    elif choice is not None and not any(row.kind == "ours" for row in rows):
        budget = f" --bits {choice.bits_asked:g}"
        missing.append(("the pictures of what was chosen", f"report {study.folder}{budget}"))
    return Kept(report_data(study, choice, rows, fitted), choice, missing)
