"""Charts of sensitivity: maps of operation by block, and strips of layers by operation and by block."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from qua2sedimo.report.costs import LayerCost, in_order
from qua2sedimo.report.data import LayerChoice
from qua2sedimo.report.style import FAMILIES, bits_scale, cost_scale, family, finish, short_option
from qua2sedimo.report.text import number

_NUMBERED = 24  # blocks up to which cells have room for a number
_BOX = "#7a8694"
_BOXED: dict[str, Any] = {"color": _BOX, "fillOpacity": 0.22, "stroke": _BOX, "strokeOpacity": 0.7}


def cost_title(unit: str) -> str:
    """The axis of costs."""
    return f"{unit or 'score'} lost from 4 to 3 bits"


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


def sensitivity_by_operation(costs: Sequence[LayerCost], width: Any = 720, unit: str = "") -> Any:
    """A box plot of the layers of each operation, the most sensitive first."""
    groups = _groups(costs, "operation")
    order = sorted(groups, key=lambda name: -statistics.median(cost.cost for cost in groups[name]))
    position = alt.Y("operation:N", title=None, scale=alt.Scale(domain=order, type="band"))
    value = alt.X("cost:Q", title=cost_title(unit), axis=alt.Axis(tickCount=8))
    offset = alt.YOffset("jitter:Q", scale=alt.Scale(domain=[-1, 1]))
    points = _points(costs, unit).encode(x=value, y=position, yOffset=offset)
    summary = alt.Chart(alt.Data(values=_summaries(groups, "operation"))).encode(y=position)
    whiskers = summary.mark_rule(color=_BOX, strokeWidth=1.4)
    bars = summary.mark_bar(size=18, cornerRadius=2, **_BOXED)
    medians = summary.mark_tick(thickness=3, size=18, color="currentColor", opacity=0.75)
    layers = alt.layer(
        _nothing_lost().encode(x="cost:Q"),
        whiskers.encode(x=alt.X("low:Q"), x2="high:Q"),
        bars.encode(x=alt.X("q1:Q"), x2="q3:Q"),
        medians.encode(x=alt.X("median:Q")),
        points,
    )
    spoken = ", ".join(f"{name} {statistics.median(c.cost for c in groups[name]):.2f}" for name in order[:5])
    return finish(
        layers.properties(width=width, height=max(120, 30 * len(order))),
        f"Box plot of the cost of going down a bit by operation, one mark a layer. Highest medians: {spoken}.",
    )


def sensitivity_by_block(costs: Sequence[LayerCost], width: Any = 720, unit: str = "") -> Any:
    """A box plot of the layers of each block, along the depth of the network."""
    groups = _groups(costs, "block")
    order = in_order(cost.block for cost in costs)
    few = len(order) <= 24
    axis = alt.Axis(labelAngle=-45 if few else -90, labelLimit=150) if len(order) > 5 else alt.Axis(labelAngle=0)
    position = alt.X("block:N", title=None, axis=axis, scale=alt.Scale(domain=order, type="band"))
    value, offset = (
        alt.Y("cost:Q", title=cost_title(unit)),
        alt.XOffset("jitter:Q", scale=alt.Scale(domain=[-1, 1])),
    )
    points = _points(costs, unit, 42 if few else 16).encode(x=position, y=value, xOffset=offset)
    summary = alt.Chart(alt.Data(values=_summaries(groups, "block"))).encode(x=position)
    whiskers = summary.mark_rule(color=_BOX, strokeWidth=1.4)
    bars = summary.mark_bar(size=22 if few else 11, cornerRadius=2, **_BOXED)
    medians = summary.mark_tick(thickness=3, size=22 if few else 11, color="currentColor", opacity=0.75)
    layers = alt.layer(
        _nothing_lost().encode(y="cost:Q"),
        whiskers.encode(y=alt.Y("low:Q"), y2="high:Q"),
        bars.encode(y=alt.Y("q1:Q"), y2="q3:Q"),
        medians.encode(y=alt.Y("median:Q")),
        points,
    )
    first, last = (statistics.median(c.cost for c in groups[name]) for name in (order[0], order[-1]))
    return finish(
        layers.properties(width=width if few else alt.Step(max(14, 1050 // len(order))), height=320),
        f"Box plot of the cost of going down a bit along {len(order)} blocks: median {first:.2f} in "
        f"{order[0]}, {last:.2f} in {order[-1]}.",
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
            axis=alt.Axis(labelAngle=-45 if few else -90, labelLimit=150, **bare),
            scale=alt.Scale(domain=blocks, padding=0.05),
        ),
        y=alt.Y("operation:N", title=None, axis=alt.Axis(**bare), scale=alt.Scale(domain=operations, padding=0.05)),
        tooltip=place[:2] + tooltip + place[2:],
    )
    legend = alt.Legend(gradientLength=150, gradientThickness=10, tickCount=4, titleAnchor="start")
    cells = base.mark_rect(cornerRadius=3, stroke="#808894", strokeOpacity=0.25).encode(
        color=alt.Color("value:Q", title=title, scale=scale, legend=legend)
    )
    ink = alt.condition("datum.dark", alt.value("#ffffff"), alt.value("currentColor"))
    text = base.mark_text(fontSize=11).encode(text="text:N", color=ink)
    layers_shown = cells + text if few else cells
    across = width if few else alt.Step(max(12, 980 // len(blocks)))
    return layers_shown.properties(width=across, height=(27 if few else 22) * len(operations))


def least_width(layers: Sequence[LayerCost] | Sequence[LayerChoice]) -> int:
    """Pixels that a map needs for the numbers in its cells."""
    return 110 + 36 * min(_NUMBERED, len({layer.block for layer in layers}))


def _points(costs: Sequence[LayerCost], unit: str, size: int = 42) -> Any:
    present = [name for name in FAMILIES if any(family(cost.operation) == name for cost in costs)]
    rows = [
        {
            "layer": cost.layer,
            "operation": cost.operation,
            "block": cost.block,
            "cost": cost.cost,
            "spread": cost.spread,
            "options": f"{cost.better} → {cost.worse}",
            "family": family(cost.operation),
            "jitter": (index * 0.618034) % 1 - 0.5,
        }
        for index, cost in enumerate(costs)
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=size, opacity=0.8)
        .encode(
            color=alt.Color(
                "family:N",
                title=None,
                scale=alt.Scale(domain=present, range=[FAMILIES[name][0] for name in present]),
            ),
            shape=alt.Shape(
                "family:N",
                title=None,
                scale=alt.Scale(domain=present, range=[FAMILIES[name][1] for name in present]),
            ),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("operation:N"),
                alt.Tooltip("block:N"),
                alt.Tooltip("cost:Q", title=cost_title(unit), format=".2~r"),
                alt.Tooltip("spread:Q", title="± over folds", format=".2~r"),
                alt.Tooltip("options:N", title="from → to"),
            ],
        )
    )


def _nothing_lost() -> Any:
    return alt.Chart(alt.Data(values=[{"cost": 0}])).mark_rule(color="#8b95a1", strokeWidth=1.2)


def _summaries(groups: dict[str, list[LayerCost]], key: str) -> list[dict[str, Any]]:
    rows = []
    for name, group in groups.items():
        if len(group) < 3:
            continue  # one or two marks speak for themselves
        costs = np.array([cost.cost for cost in group])
        q1, median, q3 = (float(q) for q in np.quantile(costs, [0.25, 0.5, 0.75]))
        near = costs[(costs >= q1 - 1.5 * (q3 - q1)) & (costs <= q3 + 1.5 * (q3 - q1))]
        low, high = float(near.min()), float(near.max())
        rows.append({key: name, "low": low, "q1": q1, "median": median, "q3": q3, "high": high})
    return rows


def _groups(costs: Sequence[LayerCost], key: str) -> dict[str, list[LayerCost]]:
    groups: dict[str, list[LayerCost]] = {}
    for cost in costs:
        groups.setdefault(getattr(cost, key), []).append(cost)
    return groups


def _cells(layers: Sequence[Any]) -> dict[tuple[str, str], list[Any]]:
    cells: dict[tuple[str, str], list[Any]] = {}
    for layer in layers:
        cells.setdefault((layer.operation, layer.block), []).append(layer)
    return cells


def _listed(names: Any, at_most: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
