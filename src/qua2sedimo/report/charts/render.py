"""Drawing chart specifications without a browser."""

from __future__ import annotations

from typing import Any

import altair as alt
import vl_convert


def vegalite_version() -> str:
    """The Vega-Lite version (``6.4``) that altair's specifications are written for."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def svg_of(specification: dict[str, Any]) -> str:
    """Draw a chart as SVG."""
    return str(vl_convert.vegalite_to_svg(specification, vl_version=vegalite_version()))
