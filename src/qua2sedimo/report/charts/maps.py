"""Maps of operation by block: sensitivity, and which options were chosen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import altair as alt

from qua2sedimo.report.charts.style import (
    bits_scale,
    cost_scale,
    cost_title,
    finish,
    in_order,
    short_option,
    uneven,
)  # fmt: skip
from qua2sedimo.report.data import LayerChoice
from qua2sedimo.report.text import decimals, number
from qua2sedimo.sensitivity.tables import LayerStep

Item = TypeVar("Item")
_NUMBERED = 24  # blocks up to which cells have room for a number


def sensitivity_map(steps: Sequence[LayerStep], unit: str = "", width: Any = 720) -> Any:
    """Operation × block, colour and number = mean cost of going from 4 to 3 bits."""
    rows: list[dict[str, Any]] = []
    for (operation, block), cell in _cells((s.layer.operation, s.layer.block, s) for s in steps).items():
        spread = math.sqrt(statistics.fmean(s.step.spread**2 for s in cell))
        rows.append({
            "operation": operation,
            "block": block,
            "value": statistics.fmean(s.step.cost for s in cell),
            "spread": f"{spread:.2g}" if math.isfinite(spread) else "unknown",
            "layers": _listed(s.layer.name for s in cell),
            "options": _listed(f"{s.step.better} → {s.step.worse}" for s in cell),
        })  # fmt: skip
    values = [row["value"] for row in rows]
    largest = max(map(abs, values)) or 1.0
    digits = min(3, decimals(largest))
    if uneven(values):  # most cells are far below the largest, and must not all read 0.0
        digits = max(digits, min(2, decimals(statistics.median(map(abs, values)), 1)))
    for row in rows:
        row |= {"dark": abs(row["value"]) > 0.72 * largest, "text": number(row["value"], digits)}
    tooltip = [
        alt.Tooltip("value:Q", title=cost_title(unit), format=".2~r"),
        alt.Tooltip("spread:N", title="± over folds"),
        alt.Tooltip("options:N", title="from → to"),
    ]
    spoken = ", ".join(f"{r['operation']} in {r['block']}" for r in sorted(rows, key=lambda r: -r["value"])[:5])
    return finish(
        _map(rows, cost_scale(values), cost_title(unit), tooltip, width),
        f"Heat map of what going from 4 to 3 bits costs, by operation and block. The most sensitive: {spoken}.",
    )


def choice_map(choices: Sequence[LayerChoice], width: Any = 720) -> Any:
    """Operation × block, colour = average bits chosen (weighted by weights), text = the option."""
    rows: list[dict[str, Any]] = []
    for (operation, block), cell in _cells((c.operation, c.block, c) for c in choices).items():
        options = list(dict.fromkeys(choice.option for choice in cell))
        rows.append({
            "operation": operation,
            "block": block,
            "value": 8 * sum(choice.nbytes for choice in cell) / max(1, sum(choice.weights for choice in cell)),
            "text": short_option(options[0]) if len(options) == 1 else f"{len(options)}×",
            "layers": _listed(choice.layer for choice in cell),
            "options": _listed(options),
        })  # fmt: skip
    top = max(6.0, *(row["value"] for row in rows))
    for row in rows:
        row["dark"] = row["value"] - 2 > 0.72 * (min(8.0, top) - 2)
    tooltip = [
        alt.Tooltip("value:Q", title="bits per weight", format=".2f"),
        alt.Tooltip("options:N", title="option"),
    ]
    low, high = min(rows, key=lambda r: r["value"]), max(rows, key=lambda r: r["value"])
    return finish(
        _map(rows, bits_scale([row["value"] for row in rows]), "bits per weight", tooltip, width),
        f"Heat map of the chosen bits by operation and block, from {low['value']:.1f} ({low['operation']} in "
        f"{low['block']}) to {high['value']:.1f} ({high['operation']} in {high['block']}).",
    )


def _map(rows: list[dict[str, Any]], scale: alt.Scale, title: str, tooltip: list[alt.Tooltip], width: Any) -> Any:
    blocks, operations = (in_order(row[key] for row in rows) for key in ("block", "operation"))
    few = len(blocks) <= _NUMBERED
    bare = {"ticks": False, "domain": False, "grid": False}
    angle, overlap = (-45, False) if few else (-90, "parity")
    x_axis, y_axis = alt.Axis(labelAngle=angle, labelLimit=150, labelOverlap=overlap, **bare), alt.Axis(**bare)
    place = [alt.Tooltip("operation:N"), alt.Tooltip("block:N")]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("block:N", title=None, axis=x_axis, scale=alt.Scale(domain=blocks, padding=0.05)),
        y=alt.Y("operation:N", title=None, axis=y_axis, scale=alt.Scale(domain=operations, padding=0.05)),
        tooltip=[*place, *tooltip, alt.Tooltip("layers:N", title="layers")],
    )
    ticks = 2 if uneven([row["value"] for row in rows]) else 4  # a scale of square roots has no room for more
    legend = alt.Legend(gradientLength=150, gradientThickness=10, tickCount=ticks, titleAnchor="start")
    cells = base.mark_rect(cornerRadius=3, stroke="#808894", strokeOpacity=0.25).encode(
        color=alt.Color("value:Q", title=title, scale=scale, legend=legend)
    )
    ink = alt.condition("datum.dark", alt.value("#ffffff"), alt.value("currentColor"))
    text = base.mark_text(fontSize=11).encode(text="text:N", color=ink)
    across = width if few or isinstance(width, int) else alt.Step(max(12, 980 // len(blocks)))
    return (cells + text if few else cells).properties(width=across, height=(27 if few else 22) * len(operations))


def least_width(blocks: Iterable[str]) -> int:
    """Pixels that a map of these blocks needs for the numbers in its cells."""
    return 110 + 36 * min(_NUMBERED, len(set(blocks)))


def _cells(items: Iterable[tuple[str, str, Item]]) -> dict[tuple[str, str], list[Item]]:
    """The items (operation, block, item) of each cell."""
    cells: dict[tuple[str, str], list[Item]] = {}
    for operation, block, item in items:
        cells.setdefault((operation, block), []).append(item)
    return cells


def _listed(texts: Iterable[str], at_most: int = 4) -> str:
    """The distinct texts, at most a few of them by name."""
    names = list(dict.fromkeys(texts))
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
