"""The frontier as a figure: quality against average bits, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qua2sedimo.formats.files import write_text
from qua2sedimo.study.stages.frontier import Point


def write_figure(points: Sequence[Point], objective: str, path: Path) -> Path:
    """Write the figure as SVG; returns the path."""
    from qua2sedimo.report.render import svg_of

    write_text(path, svg_of(specification(points, objective)))
    return path


def specification(points: Sequence[Point], objective: str) -> dict[str, Any]:
    """A Vega-Lite specification: points with 95 % intervals, and a stepped line along the frontier."""
    rows = [
        {
            "name": p.name,
            "bits": p.average_bits,
            "quality": p.quality.value,
            "low": p.quality.low,
            "high": p.quality.high,
            "kind": "uniform" if p.name.startswith("uniform-") else "chosen",
        }
        for p in points
    ]
    efficient = [row for row, p in zip(rows, points) if p.efficient]
    x = {"field": "bits", "type": "quantitative", "title": "average bits a weight", "scale": {"zero": False}}
    y = {"field": "quality", "type": "quantitative", "title": objective, "scale": {"zero": False}}
    colour = {"field": "kind", "type": "nominal", "title": None}
    interval = {**y, "field": "low"}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 560,
        "height": 340,
        "background": "white",
        "data": {"values": rows},
        "layer": [
            {
                "data": {"values": efficient},
                "mark": {"type": "line", "interpolate": "step-after", "color": "#999"},
                "encoding": {"x": x, "y": y},
            },
            {"mark": "rule", "encoding": {"x": x, "y": interval, "y2": {"field": "high"}, "color": colour}},
            {
                "mark": {"type": "point", "filled": True, "size": 45},
                "encoding": {"x": x, "y": y, "color": colour, "tooltip": [{"field": "name"}, {"field": "bits"}]},
            },
        ],
    }
