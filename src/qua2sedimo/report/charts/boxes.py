"""Box plots of sensitivity: the layers of each operation, and of each block along the network's depth."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from qua2sedimo.report.charts.style import (
    FAMILIES,
    GREY,
    cost_title,
    family,
    finish,
    height_for,
    in_order,
    ticks_for,
    uneven,
)  # fmt: skip
from qua2sedimo.sensitivity.tables import LayerStep

_BOX = "#7a8694"
_LOOK: dict[str, Any] = {
    "box": {"cornerRadius": 2, "color": _BOX, "fillOpacity": 0.22, "stroke": _BOX, "strokeOpacity": 0.7},
    "rule": {"color": _BOX, "strokeWidth": 1.4},
    "median": {"color": "currentColor", "thickness": 3, "opacity": 0.75},
}
_JITTER: dict[str, Any] = {"shorthand": "jitter:Q", "scale": alt.Scale(domain=[-1, 1])}


def cost_axis(steps: Iterable[LayerStep], **more: Any) -> alt.Scale:
    """The scale of an axis of costs: square roots where a few layers cost far more than all others."""
    return alt.Scale(type="sqrt" if uneven([s.step.cost for s in steps]) else "linear", **more)


def sensitivity_by_operation(steps: Sequence[LayerStep], width: Any = 720, unit: str = "") -> Any:
    """A box plot of the layers of each operation, the most sensitive first."""
    medians = medians_by(steps, "operation")
    order = sorted(medians, key=lambda name: -medians[name])
    y = alt.Y("operation:N", title=None, scale=alt.Scale(domain=order, type="band"))
    axis = alt.Axis(tickCount=ticks_for(width, 8))
    x = alt.X("cost:Q", title=cost_title(unit), axis=axis, scale=cost_axis(steps, nice=True))
    plot = _boxes_and_marks(steps, "operation", unit, {"x": x, "y": y}, {"yOffset": alt.YOffset(**_JITTER)}, 18)
    spoken = ", ".join(f"{name} {medians[name]:.2f}" for name in order[:5])
    return finish(
        plot.properties(width=width, height=max(120, 30 * len(order))),
        f"Box plot of what going from 4 to 3 bits costs, by operation, one mark a layer. Highest medians: {spoken}.",
    )


def sensitivity_by_block(steps: Sequence[LayerStep], width: Any = 720, unit: str = "") -> Any:
    """A box plot of the layers of each block, along the depth of the network."""
    medians = medians_by(steps, "block")
    order = in_order(medians)
    few = len(order) <= 24
    angle = 0 if len(order) <= 5 else -45 if few else -90
    axis = alt.Axis(labelAngle=angle, labelLimit=150, labelOverlap=False if few else "parity")
    size = 22 if few else 11
    if isinstance(width, int):
        size = min(size, max(4, width * 6 // (10 * len(order))))
    x = alt.X("block:N", title=None, axis=axis, scale=alt.Scale(domain=order, type="band"))
    y = alt.Y("cost:Q", title=cost_title(unit), scale=cost_axis(steps, nice=True))
    plot = _boxes_and_marks(steps, "block", unit, {"x": x, "y": y}, {"xOffset": alt.XOffset(**_JITTER)}, size)
    across = width if few or isinstance(width, int) else alt.Step(max(14, 1050 // len(order)))
    first, last = order[0], order[-1]
    return finish(
        plot.properties(width=across, height=height_for(width, 320)),
        f"Box plot of what going from 4 to 3 bits costs, along {len(order)} blocks: median {medians[first]:.2f} in "
        f"{first}, {medians[last]:.2f} in {last}.",
    )


def _boxes_and_marks(
    steps: Sequence[LayerStep], key: str, unit: str, axes: dict[str, Any], offset: dict[str, Any], size: int
) -> Any:
    """A mark for each layer over the boxes of groups; many marks are small."""
    rows = step_rows(steps, key)
    most = max(Counter(row[key] for row in rows).values())
    roomy = most <= 24 and len({row[key] for row in rows}) <= 24
    for row in rows:
        row["size"] = 42 if roomy or row["few"] else 16
    families = [name for name in FAMILIES if any(row["family"] == name for row in rows)]
    colours, shapes = zip(*(FAMILIES[name] for name in families))
    marks = alt.Chart().mark_point(filled=True, opacity=0.8 if roomy else 0.65).encode(
        **axes, **offset,
        size=alt.Size("size:Q", scale=None, legend=None),
        color=alt.Color("family:N", title=None, scale=alt.Scale(domain=families, range=colours)),
        shape=alt.Shape("family:N", title=None, scale=alt.Scale(domain=families, range=shapes)),
        tooltip=[
            alt.Tooltip("layer:N"), alt.Tooltip("operation:N"), alt.Tooltip("block:N"),
            alt.Tooltip("cost:Q", title=cost_title(unit), format=".2~r"),
            alt.Tooltip("spread:N", title="± over folds"), alt.Tooltip("options:N", title="from → to"),
        ],
    )  # fmt: skip
    return alt.layer(nothing_lost(axes), boxes(axes, size, **_LOOK), marks, data=alt.Data(values=rows))


def step_rows(steps: Sequence[LayerStep], key: str) -> list[dict[str, Any]]:
    """A row for each layer; ``few``: its group has one or two layers, which are shown as marks without a box."""
    groups = Counter(getattr(s.layer, key) for s in steps)
    return [
        {
            "layer": s.layer.name,
            "operation": s.layer.operation,
            "block": s.layer.block,
            "cost": s.step.cost,
            "spread": f"{s.step.spread:.2g}" if math.isfinite(s.step.spread) else "unknown",
            "options": f"{s.step.better} → {s.step.worse}",
            "family": family(s.layer.operation),
            "few": groups[getattr(s.layer, key)] < 3,
            "jitter": (index * 0.618034) % 1 - 0.5,
        }
        for index, s in enumerate(steps)
    ]


def boxes(encoding: dict[str, Any], size: int, **look: Any) -> Any:
    """A box plot for each group of a layered chart that has three or more layers."""
    marks = alt.Chart().mark_boxplot(extent=1.5, size=size, outliers=False, ticks=False, **look)
    return marks.transform_filter("!datum.few").encode(**encoding)


def nothing_lost(axes: dict[str, Any]) -> Any:
    """A line at a cost of zero."""
    along = {channel: axis for channel, axis in axes.items() if axis.to_dict().get("field") == "cost"}
    return alt.Chart(alt.Data(values=[{"cost": 0}])).mark_rule(color=GREY, strokeWidth=1.2).encode(**along)


def medians_by(steps: Iterable[LayerStep], key: str) -> dict[str, float]:
    """The median cost of each operation or block, in the order in which they first appear."""
    groups: dict[str, list[float]] = {}
    for s in steps:
        groups.setdefault(getattr(s.layer, key), []).append(s.step.cost)
    return {name: statistics.median(costs) for name, costs in groups.items()}
