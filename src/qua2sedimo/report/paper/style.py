"""Charts as papers print them: white ground, dark ink, letters of 8 points in a column or across a page.

A chart is drawn half as large again as it is printed, so that its 12 pixels are 8 points, and then given its size.
"""

from __future__ import annotations

import re
from typing import Any

import vl_convert

from qua2sedimo.report.charts.render import svg_of

#: Points across one column, and across both with the gap between them, of common two-column styles.
COLUMN, PAGE = 240, 504
_PIXELS = 1.5  # a point
_DOTS = 300  # an inch of a PNG
INK = "#16191d"
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"

FORMATS = ("svg", "png", "pdf")


def drawn_width(points: float) -> int:
    """The pixels a chart is drawn with that is printed ``points`` wide."""
    return round(points * _PIXELS)


def paper_file(specification: dict[str, Any], points: float, form: str) -> bytes:
    """A chart as a file, ``points`` wide; ``form`` is one of :data:`FORMATS`.

    The chart fills that width if its own is :func:`drawn_width`; one whose width follows from its number of columns
    is drawn smaller until it fits.
    """
    drawing = svg_of(paper_style(specification))
    width, height = (float(found) for found in _SIZE.findall(drawing)[0])
    scale = min(1 / _PIXELS, points / width)
    across, down = scale * width, scale * height
    if form == "svg":
        return _sized(drawing, f"{across:.2f}pt", f"{down:.2f}pt").encode()
    if form == "pdf":
        return bytes(vl_convert.svg_to_pdf(_sized(drawing, f"{across:.2f}", f"{down:.2f}")))
    return bytes(vl_convert.svg_to_png(drawing, scale=scale, ppi=_DOTS))


_SIZE = re.compile(r'<svg[^>]*? width="([\d.]+)" height="([\d.]+)"')


def _sized(drawing: str, width: str, height: str) -> str:
    """The drawing with another size; its viewBox keeps what it shows."""
    return re.sub(r' width="[\d.]+" height="[\d.]+"', f' width="{width}" height="{height}"', drawing, count=1)


def paper_style(specification: dict[str, Any]) -> dict[str, Any]:
    """The same chart without tooltips, in ink on white, in a font that every printer knows."""
    printed = _printed(specification)
    config = printed.get("config", {})
    ink = {"labelColor": INK, "titleColor": INK}
    axis = {**config.get("axis", {}), **ink, "domainColor": "#60666e", "labelFlush": False}
    legend = {**config.get("legend", {}), **ink}
    printed["config"] = {**config, "font": FONT, "axis": axis, "legend": legend}
    if isinstance(printed.get("width"), (int, float)):
        printed["autosize"] = {"type": "fit", "contains": "padding"}
    return {**printed, "background": "white", "padding": 4}


#: Data fields of the labels beside marks; in the cells of a map the field is "text".
_BESIDE = ("label", "value")


def _printed(part: Any) -> Any:
    """Without tooltips, and with ink for the page's text colour."""
    if isinstance(part, list):
        return [found for one in part for found in _with_halo(_printed(one))]
    if isinstance(part, dict):
        return {key: _printed(value) for key, value in part.items() if key != "tooltip"}
    return INK if part == "currentColor" else part


def _with_halo(layer: Any) -> list[Any]:
    """Labels that may stand over other marks get a white rim, for legibility."""
    encoding = layer.get("encoding", {}) if isinstance(layer, dict) else {}
    if not isinstance(encoding, dict) or encoding.get("text", {}).get("field") not in _BESIDE:
        return [layer]
    rim = {"stroke": "white", "strokeWidth": 3, "strokeJoin": "round", "opacity": 0.85}
    white = {**encoding, "color": {"value": "white"}}
    return [{**layer, "mark": {**layer["mark"], **rim}, "encoding": white}, layer]
