"""Names and prompts hold any text: control characters, half of a pair of code units, every script and direction."""

from __future__ import annotations

from pathlib import Path

import pytest

from qua2sedimo.report import ReportData, write_figures, write_report, write_two_studies
from qua2sedimo.report.card.markdown import write_card

from .synthetic import synthetic_data
from .test_card import synthetic_card

ODD = "\x1b[31m\x00\x07\x08\x9b \u202e\u2028 🦊👩\u200d👩\u200d👧 نص ไทย e\u0301\u0301 \ufffe\uffff \ud800 end"
UNDRAWABLE = "\x1b\x00\x07\x08\u2028\ufffe\uffff\ud800"


@pytest.fixture(scope="module")
def odd() -> ReportData:
    return synthetic_data(blocks=2, records=20, evil=ODD)


def is_clean(path: Path) -> bool:
    """Whether a text file is UTF-8, says what can be said, and nothing that cannot."""
    text = path.read_text(encoding="utf-8")
    return "end" in text and not set(UNDRAWABLE) & set(text)


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_figures_are_drawn(odd: ReportData, tmp_path: Path, form: str) -> None:
    """Control characters ended the whole process where they were drawn."""
    alone = write_figures(odd, tmp_path / "one", form)
    paths = [*alone, *write_two_studies({ODD: odd, "second": odd}, tmp_path / "two", form)]
    assert len(paths) > 9 and all(path.stat().st_size for path in paths)
    named = [path for path in paths if path.suffix == ".md" or path.name == "quality-against-bits.svg"]
    assert named and all(map(is_clean, named))


def test_report_and_card_are_written(odd: ReportData, tmp_path: Path) -> None:
    write_report(odd, tmp_path / "report.html")
    assert is_clean(tmp_path / "report.html") and is_clean(write_card(synthetic_card(ODD), tmp_path / "card"))
