"""Pages of the docs that benchmarks write into: what they measured, between two marks."""

from __future__ import annotations

from pathlib import Path

from qua2sedimo.formats.files import write_text

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = DOCS / "figures"


def write_measured(page: str, text: str) -> None:
    """Put ``text`` between ``<!-- measured … -->`` and ``<!-- end -->`` of ``docs/PAGE``."""
    path = DOCS / page
    content = path.read_text()
    start, end = content.index("-->", content.index("<!-- measured")) + 3, content.index("<!-- end -->")
    write_text(path, f"{content[:start]}\n{text}\n{content[end:]}")
