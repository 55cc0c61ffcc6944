"""Pages of the docs that benchmarks write into: what they measured, between two marks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qua2sedimo.formats.files import write_text

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = DOCS / "figures"


def write_measured(page: str, text: str, name: str = "measured") -> None:
    """Put ``text`` between ``<!-- NAME … -->`` and ``<!-- /NAME -->`` of ``docs/PAGE``; ValueError without these."""
    path = DOCS / page
    content = path.read_text(encoding="utf-8")
    start, end = content.index("-->", content.index(f"<!-- {name}")) + 3, content.index(f"<!-- /{name} -->")
    write_text(path, f"{content[:start]}\n{text}\n{content[end:]}")


def write_table(page: str, name: str, lines: Iterable[str]) -> None:
    """Put the lines of a table there, with empty ones around it, as Markdown wants."""
    write_measured(page, "\n".join(["", *lines, ""]), name)
