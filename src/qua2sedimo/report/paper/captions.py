"""Captions of the paper figures: what is shown, with numbers, and how it was made; text of a study is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from qua2sedimo.formats.text import size_text
from qua2sedimo.report.charts.figures import Figure
from qua2sedimo.report.data import ReportData
from qua2sedimo.report.text import escaped

#: The heading that stands in every page of captions.
HOW = "# How they were made"


def captions_of(figures: Sequence[Figure], studies: Sequence[ReportData], made_by: Sequence[str] = ()) -> str:
    """A Markdown page with a caption for each figure, and after them how the studies were made."""
    parts = ["# Captions"]
    for number, figure in enumerate(figures, 1):
        numbers = escaped(figure.chart.description)
        parts.append(
            f"## {figure.name}\n\n**Figure {number}. {escaped(figure.title)}.** {escaped(figure.text)}\n\n"
            f"In words: {numbers}"
        )
    parts.append(HOW)
    parts += _commands("The figures were written by:", made_by)
    for data in studies:
        lines = [_studied(data), *(f"{escaped(name)}: {escaped(value)}" for name, value in data.provenance.items())]
        parts.append("\n".join(f"- {line}" for line in lines))
        parts += _commands("These commands repeat the study:", data.commands)
    return "\n\n".join(parts) + "\n"


def _commands(title: str, commands: Sequence[str]) -> list[str]:
    """An indented code block after a paragraph, which ends the list before it."""
    return [title, "\n".join(f"    {' '.join(command.splitlines())}" for command in commands)] if commands else []


def _studied(data: ReportData) -> str:
    chosen = f", packed into {size_text(data.ours_bytes)}, {data.ours_bits:.2f} bits per weight" if data.choices else ""
    return (
        f"{escaped(data.model)} ({escaped(data.pipeline)}): {data.layers} layers, {data.weights:,} weights, "
        f"{size_text(data.full_bytes)} in 16 bits{chosen}"
    )
