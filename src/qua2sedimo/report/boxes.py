"""Box plots of sensitivity: the layers of each operation, and of each block along the network's depth."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np

from qua2sedimo.report.costs import LayerCost, in_order
from qua2sedimo.report.style import FAMILIES, cost_title, family, finish, height_for, ticks_for, uneven

BOX = "#7a8694"
BOXED: dict[str, Any] = {"color": BOX, "fillOpacity": 0.22, "stroke": BOX, "strokeOpacity": 0.7}


def cost_axis(costs: Iterable[LayerCost], **more: Any) -> alt.Scale:
    """The scale of an axis of costs: roots where a few layers cost far more than all others."""
    return alt.Scale(type="sqrt" if uneven([cost.cost for cost in costs]) else "linear", **more)


def sensitivity_by_operation(costs: Sequence[LayerCost], width: Any = 720, unit: str = "") -> Any:
    """A box plot of the layers of each operation, the most sensitive first."""
    groups = groups_by(costs, "operation")
    order = sorted(groups, key=lambda name: -statistics.median(cost.cost for cost in groups[name]))
    position = alt.Y("operation:N", title=None, scale=alt.Scale(domain=order, type="band"))
    value = alt.X(
        "cost:Q", title=cost_title(unit), axis=alt.Axis(tickCount=ticks_for(width, 8)), scale=cost_axis(costs)
    )
    offset = alt.YOffset("jitter:Q", scale=alt.Scale(domain=[-1, 1]))
    points = _points(costs, unit, groups).encode(x=value, y=position, yOffset=offset)
    summary = alt.Chart(alt.Data(values=summaries(groups, "operation"))).encode(y=position)
    whiskers = summary.mark_rule(color=BOX, strokeWidth=1.4)
    bars = summary.mark_bar(size=18, cornerRadius=2, **BOXED)
    medians = summary.mark_tick(thickness=3, size=18, color="currentColor", opacity=0.75)
    layers = alt.layer(
        nothing_lost().encode(x="cost:Q"),
        whiskers.encode(x=alt.X("low:Q"), x2="high:Q"),
        bars.encode(x=alt.X("q1:Q"), x2="q3:Q"),
        points,
        medians.encode(x=alt.X("median:Q")),
    )
    spoken = ", ".join(f"{name} {statistics.median(c.cost for c in groups[name]):.2f}" for name in order[:5])
    return finish(
        layers.properties(width=width, height=max(120, 30 * len(order))),
        f"Box plot of the cost of going down a bit by operation, one mark a layer. Highest medians: {spoken}.",
    )


def sensitivity_by_block(costs: Sequence[LayerCost], width: Any = 720, unit: str = "") -> Any:
    """A box plot of the layers of each block, along the depth of the network."""
    groups = groups_by(costs, "block")
    order = in_order(cost.block for cost in costs)
    few = len(order) <= 24
    angle = 0 if len(order) <= 5 else -45 if few else -90
    axis = alt.Axis(labelAngle=angle, labelLimit=150, labelOverlap=False if few else "parity")
    across = width if few or isinstance(width, int) else alt.Step(max(14, 1050 // len(order)))
    size = 22 if few else 11
    if isinstance(width, int):
        size = min(size, max(4, width * 6 // (10 * len(order))))
    position = alt.X("block:N", title=None, axis=axis, scale=alt.Scale(domain=order, type="band"))
    value, offset = (
        alt.Y("cost:Q", title=cost_title(unit), scale=cost_axis(costs)),
        alt.XOffset("jitter:Q", scale=alt.Scale(domain=[-1, 1])),
    )
    points = _points(costs, unit, groups).encode(x=position, y=value, xOffset=offset)
    summary = alt.Chart(alt.Data(values=summaries(groups, "block"))).encode(x=position)
    whiskers = summary.mark_rule(color=BOX, strokeWidth=1.4)
    bars = summary.mark_bar(size=size, cornerRadius=2, **BOXED)
    medians = summary.mark_tick(thickness=3, size=size, color="currentColor", opacity=0.75)
    layers = alt.layer(
        nothing_lost().encode(y="cost:Q"),
        whiskers.encode(y=alt.Y("low:Q"), y2="high:Q"),
        bars.encode(y=alt.Y("q1:Q"), y2="q3:Q"),
        points,
        medians.encode(y=alt.Y("median:Q")),
    )
    first, last = (statistics.median(c.cost for c in groups[name]) for name in (order[0], order[-1]))
    return finish(
        layers.properties(width=across, height=height_for(width, 320)),
        f"Box plot of the cost of going down a bit along {len(order)} blocks: median {first:.2f} in "
        f"{order[0]}, {last:.2f} in {order[-1]}.",
    )


def _points(costs: Sequence[LayerCost], unit: str, groups: dict[str, list[LayerCost]]) -> Any:
    most = max(map(len, groups.values()))
    size, opacity = (42, 0.8) if most <= 24 and len(groups) <= 24 else (16, 0.65)
    alone = {cost.layer for group in groups.values() if len(group) < 3 for cost in group}
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
            "size": 42 if cost.layer in alone else size,
            "jitter": (index * 0.618034) % 1 - 0.5,
        }
        for index, cost in enumerate(costs)
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, opacity=opacity)
        .encode(
            size=alt.Size("size:Q", scale=None, legend=None),
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


def nothing_lost() -> Any:
    return alt.Chart(alt.Data(values=[{"cost": 0}])).mark_rule(color="#8b95a1", strokeWidth=1.2)


def summaries(groups: dict[str, list[LayerCost]], key: str) -> list[dict[str, Any]]:
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


def groups_by(costs: Sequence[LayerCost], key: str) -> dict[str, list[LayerCost]]:
    groups: dict[str, list[LayerCost]] = {}
    for cost in costs:
        groups.setdefault(getattr(cost, key), []).append(cost)
    return groups
