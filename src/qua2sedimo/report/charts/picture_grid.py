"""The same pictures by each model, as a figure: rows are models, columns are a prompt and a noise each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt

from qua2sedimo.report.charts.style import finish
from qua2sedimo.report.data import ReportData
from qua2sedimo.report.pictures import data_url, fitted

MOST = 8  # pictures a row of a page has room for
FEW = 3  # pictures a row of a column has room for
_LABEL, _GAP, _PADDING = 100, 4, 4  # pixels of the models' names, between two pictures, and around all
_LINE, _LINES = 14, 4  # pixels of a line of text, and how many lines of a prompt are shown
_LETTER = 5.9  # pixels a letter of 12 is wide, about
_SIDE = 384  # dots a picture has at most: three quarters of an inch at more than the usual 300
_SOFT = "#60666e"


def picture_grid(data: ReportData, width: int) -> Any:
    """The first pictures of every model, ``width`` pixels with names and gaps; prompts that are too long are cut."""
    captions, rows = data.captions[:MOST], data.pictures
    across = (width - 2 * _PADDING - _LABEL + _GAP) / len(captions) - _GAP
    height, width_of_one = rows[0].images[0].shape[:2]
    down = across * height / width_of_one
    prompts = [_wrapped(caption, across) for caption in captions]
    top = _LINE * max(map(len, prompts)) + _GAP
    places = [(_LABEL + number * (across + _GAP)) for number in range(len(captions))]
    levels = [top + number * (down + _GAP) for number in range(len(rows))]
    cells = [
        {"x": x, "y": y, "url": data_url(fitted(row.name, image, _SIDE, _SIDE))}
        for y, row in zip(levels, rows)
        for x, image in zip(places, row.images)
    ]
    heads = [{"x": x, "y": top - _GAP - _LINE * len(text), "text": text} for x, text in zip(places, prompts)]
    bits = {row.name: f"{row.bits:.2f} bits" for row in data.table}
    names, sizes = [], []
    for y, row in zip(levels, rows):
        lines = _wrapped(row.name, _LABEL - 2 * _GAP)
        first = y + (down - _LINE * (len(lines) + 1)) / 2
        names.append({"x": 0, "y": first, "text": lines})
        sizes.append({"x": 0, "y": first + _LINE * len(lines), "text": bits.get(row.name, "")})
    x, y = (alt.X("x:Q", scale=None, axis=None), alt.Y("y:Q", scale=None, axis=None))
    images = alt.Chart(alt.Data(values=cells)).mark_image(
        width=across, height=down, align="left", baseline="top", aspect=False
    )
    texts = ((heads, "currentColor", across + _GAP), (names, "currentColor", _LABEL), (sizes, _SOFT, _LABEL))
    plot = alt.layer(
        images.encode(x=x, y=y, url="url:N"), *(_texts(*shown).encode(x=x, y=y, text="text:N") for shown in texts)
    ).properties(width=width, height=levels[-1] + down + 2 * _PADDING)
    models = ", ".join(f"“{row.name}”" for row in rows)
    return finish(plot, f"A grid of {len(captions)} columns of pictures, with a row for each of {models}.")


def _texts(rows: list[dict[str, Any]], color: str, limit: float) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows)).mark_text(
        align="left", baseline="line-top", lineHeight=_LINE, color=color, limit=limit
    )


def numbered(captions: Sequence[str]) -> str:
    """Prompts in a sentence, each with the number of its column."""
    return "; ".join(f"({number}) {' '.join(caption.split())}" for number, caption in enumerate(captions, 1))


def _wrapped(text: str, width: float) -> list[str]:
    letters = max(4, int(width / _LETTER))
    return textwrap.wrap(text, letters, max_lines=_LINES, placeholder=" …", break_on_hyphens=False) or [""]
