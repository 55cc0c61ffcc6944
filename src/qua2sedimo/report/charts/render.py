"""Drawing chart specifications without a browser."""

from __future__ import annotations

from typing import Any

import altair as alt
import vl_convert

from qua2sedimo.formats.text import printable


def vegalite_version() -> str:
    """The Vega-Lite version (``6.4``) that altair's specifications are written for."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def svg_of(specification: dict[str, Any]) -> str:
    """Draw a chart as SVG. Its texts may hold any characters: the library ends the process at some of them."""
    return str(vl_convert.vegalite_to_svg(_printable(specification), vl_version=vegalite_version()))


def _printable(part: Any) -> Any:
    """The specification with every text as it can be drawn."""
    if isinstance(part, str):
        return printable(part)
    if isinstance(part, dict):
        return {printable(key): _printable(value) for key, value in part.items()}
    return [_printable(one) for one in part] if isinstance(part, (list, tuple)) else part
