"""Maps of operation by block: what going down a bit costs, and what was chosen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from qua2sedimo.report.costs import LayerCost, in_order
from qua2sedimo.report.data import LayerChoice
from qua2sedimo.report.style import bits_scale, cost_scale, cost_title, finish, short_option, uneven
from qua2sedimo.report.text import number

_NUMBERED = 24  # blocks up to which cells have room for a number


def sensitivity_map(costs: Sequence[LayerCost], unit: str = "", width: Any = 720) -> Any:
    """Operation × block, colour and number = mean cost of going down a bit."""
    rows: list[dict[str, Any]] = []
    for (operation, block), cell in _cells(costs).items():
        mean = statistics.fmean(cost.cost for cost in cell)
        rows.append(
            {
                "operation": operation,
                "block": block,
                "value": mean,
                "spread": float(np.sqrt(np.mean([cost.spread**2 for cost in cell]))),
                "layers": _listed([cost.layer for cost in cell]),
                "options": _listed(dict.fromkeys(f"{cost.better} → {cost.worse}" for cost in cell)),
            }
        )
    values = [row["value"] for row in rows]
    largest = max(map(abs, values)) or 1.0
    digits = max(0, min(3, 1 - math.floor(math.log10(largest))))
    if uneven(values):  # most cells are far below the largest, and must not all read 0.0
        digits = max(digits, min(2, -math.floor(math.log10(statistics.median(map(abs, values))))))
    strong = 0.72 * largest
    for row in rows:
        row["dark"] = abs(row["value"]) > strong
        row["text"] = number(row["value"], digits)
    tooltip = [
        alt.Tooltip("value:Q", title=cost_title(unit), format=".2~r"),
        alt.Tooltip("spread:Q", title="± over folds", format=".2~r"),
        alt.Tooltip("options:N", title="from → to"),
    ]
    spoken = ", ".join(f"{r['operation']} in {r['block']}" for r in sorted(rows, key=lambda r: -r["value"])[:5])
    return finish(
        _map(rows, costs, cost_scale(values), cost_title(unit), tooltip, width),
        f"Heat map of the cost of going down a bit, by operation and block. The most sensitive: {spoken}.",
    )


def choice_map(choices: Sequence[LayerChoice], width: Any = 720) -> Any:
    """Operation × block, colour = average bits chosen (weighted by weights), text = the option."""
    rows: list[dict[str, Any]] = []
    for (operation, block), cell in _cells(choices).items():
        bits = 8 * sum(choice.nbytes for choice in cell) / max(1, sum(choice.weights for choice in cell))
        options = list(dict.fromkeys(choice.option for choice in cell))
        rows.append(
            {
                "operation": operation,
                "block": block,
                "value": bits,
                "text": short_option(options[0]) if len(options) == 1 else f"{len(options)}×",
                "layers": _listed([choice.layer for choice in cell]),
                "options": _listed(options),
            }
        )
    top = max(6.0, *(row["value"] for row in rows))
    for row in rows:
        row["dark"] = row["value"] - 2 > 0.72 * (min(8.0, top) - 2)
    tooltip = [
        alt.Tooltip("value:Q", title="bits per weight", format=".2f"),
        alt.Tooltip("options:N", title="option"),
    ]
    low, high = min(rows, key=lambda r: r["value"]), max(rows, key=lambda r: r["value"])
    return finish(
        _map(rows, choices, bits_scale([row["value"] for row in rows]), "bits per weight", tooltip, width),
        f"Heat map of the chosen bits by operation and block, from {low['value']:.1f} ({low['operation']} in "
        f"{low['block']}) to {high['value']:.1f} ({high['operation']} in {high['block']}).",
    )


def _map(
    rows: list[dict[str, Any]],
    layers: Sequence[LayerCost] | Sequence[LayerChoice],
    scale: alt.Scale,
    title: str,
    tooltip: list[alt.Tooltip],
    width: Any,
) -> Any:
    blocks = in_order(layer.block for layer in layers)
    operations = in_order(layer.operation for layer in layers)
    few = len(blocks) <= _NUMBERED
    bare = {"ticks": False, "domain": False, "grid": False}
    place = [alt.Tooltip("operation:N"), alt.Tooltip("block:N"), alt.Tooltip("layers:N", title="layers")]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "block:N",
            title=None,
            axis=alt.Axis(
                labelAngle=-45 if few else -90, labelLimit=150, labelOverlap=False if few else "parity", **bare
            ),
            scale=alt.Scale(domain=blocks, padding=0.05),
        ),
        y=alt.Y("operation:N", title=None, axis=alt.Axis(**bare), scale=alt.Scale(domain=operations, padding=0.05)),
        tooltip=place[:2] + tooltip + place[2:],
    )
    ticks = 2 if uneven([row["value"] for row in rows]) else 4  # roots leave no room for more
    legend = alt.Legend(gradientLength=150, gradientThickness=10, tickCount=ticks, titleAnchor="start")
    cells = base.mark_rect(cornerRadius=3, stroke="#808894", strokeOpacity=0.25).encode(
        color=alt.Color("value:Q", title=title, scale=scale, legend=legend)
    )
    ink = alt.condition("datum.dark", alt.value("#ffffff"), alt.value("currentColor"))
    text = base.mark_text(fontSize=11).encode(text="text:N", color=ink)
    layers_shown = cells + text if few else cells
    across = width if few or isinstance(width, int) else alt.Step(max(12, 980 // len(blocks)))
    return layers_shown.properties(width=across, height=(27 if few else 22) * len(operations))


def least_width(layers: Sequence[LayerCost] | Sequence[LayerChoice]) -> int:
    """Pixels that a map needs for the numbers in its cells."""
    return 110 + 36 * min(_NUMBERED, len({layer.block for layer in layers}))


def _cells(layers: Sequence[Any]) -> dict[tuple[str, str], list[Any]]:
    cells: dict[tuple[str, str], list[Any]] = {}
    for layer in layers:
        cells.setdefault((layer.operation, layer.block), []).append(layer)
    return cells


def _listed(names: Any, at_most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
