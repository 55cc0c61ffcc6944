"""Two studies in one chart: their frontiers, what a bit costs their operations and blocks, and what was chosen."""

from __future__ import annotations

import math
import statistics
from typing import Any

import altair as alt

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.report.bars import options_side_by_side
from qua2sedimo.report.boxes import cost_axis, groups_by, nothing_lost, summaries
from qua2sedimo.report.charts import ROOTS, Figure, axis_title, efficient
from qua2sedimo.report.costs import LayerCost, in_order, layer_costs
from qua2sedimo.report.data import MeasuredPoint, ReportData
from qua2sedimo.report.style import ORANGE, cost_title, finish, height_for, option_key, uneven

#: Colour, shape and dashes of the first and the second study: also without colour they can be told apart.
_COLOURS, _SHAPES, _DASHES = ("#12508f", ORANGE), ("circle", "triangle-up"), ([1, 0], [5, 3])
Costs = dict[str, list[LayerCost]]


def compared_figures(studies: dict[str, ReportData], column: int, page: int) -> list[Figure]:
    """Every figure for which both studies (name → data) have what it shows; ``half`` ones fit into a column.

    ``column`` and ``page`` are widths in pixels. Raises :class:`Qua2SeDiMoError` for other than two studies, or two
    that cannot be compared.
    """
    check_comparable(studies)
    named = " and ".join(f"“{name}” ({data.model})" for name, data in studies.items())
    figures = []
    measured = {name: _measured(data) for name, data in studies.items()}
    if all(measured.values()):
        any_data = next(iter(studies.values()))
        text = (
            f"Measured configurations of {named}. Lines join the best measured at each size; upright lines are their "
            "95 % intervals. The best of many measurements is partly luck, so only marks whose intervals lie apart "
            "differ. Sizes count every scale, zero point and codebook."
        )
        chart = frontiers(measured, any_data, column)
        figures.append(
            Figure("quality-against-bits", f"{any_data.objective_info.title} against size", text, chart, True)
        )
    costs: Costs = {name: layer_costs(data.scores) for name, data in studies.items()}
    if all(costs.values()):
        unit = next(iter(studies.values())).cost_unit
        text = (
            f"What going from about 4 to about 3 bits is expected to cost the layers of {named}, in {unit or 'score'}. "
            "Boxes span the middle half of the layers, thick lines are medians, whiskers reach the furthest layer "
            "within 1.5 boxes; one or two layers are marks."
            + (ROOTS if uneven([cost.cost for found in costs.values() for cost in found]) else "")
        )
        by_operation = costs_by_operation(costs, unit, column)
        figures.append(Figure("sensitivity-by-operation", "Sensitivity by operation", text, by_operation, True))
        by_block = costs_by_block(costs, unit, page)
        figures.append(Figure("sensitivity-by-block", "Sensitivity by block", text, by_block))
    if all(data.choices for data in studies.values()):
        sizes = ", ".join(f"{data.ours_bits:.2f} bits a weight in “{name}”" for name, data in studies.items())
        text = f"How many of an operation's layers got each option: {sizes}. {option_key()}"
        chosen = options_side_by_side({name: data.choices for name, data in studies.items()}, page)
        figures.append(Figure("options-by-operation", "Options by operation", text, chosen))
    return figures


def check_comparable(studies: dict[str, ReportData]) -> None:
    """Raise :class:`Qua2SeDiMoError` unless these are two studies of one objective."""
    if len(studies) != 2:
        raise Qua2SeDiMoError(f"expected two studies of different names, got {len(studies)}")
    (a, first), (b, second) = studies.items()
    if first.objective != second.objective:
        raise Qua2SeDiMoError(
            f"'{a}' measures {first.objective}, '{b}' measures {second.objective}: their figures have no common axis",
            "Compare studies with the same 'objective:' in study.yaml.",
        )
    if first.scores and second.scores and first.cost_unit != second.cost_unit:
        raise Qua2SeDiMoError(
            f"costs of '{a}' are in {first.cost_unit}, those of '{b}' in {second.cost_unit}",
            "Fit both predictors with this version: qua2sedimo fit STUDY.",
        )


def _measured(data: ReportData) -> list[MeasuredPoint]:
    return [point for point in data.points if point.kind != "full" and math.isfinite(point.value)]


def frontiers(measured: dict[str, list[MeasuredPoint]], data: ReportData, width: int) -> Any:
    """All measured configurations of both studies, and the frontier of each."""
    better = data.objective_info.higher_is_better
    best = {name: efficient(points, better) for name, points in measured.items()}
    everything, frontier = _rows(measured), _rows(best)
    x = alt.X(
        "bits:Q",
        title="average bits per weight, overhead counted",
        scale=alt.Scale(zero=False),
        axis=alt.Axis(tickCount=6),
    )
    y = alt.Y("value:Q", title=axis_title(data), scale=alt.Scale(zero=False))
    names = list(measured)
    color, shape = _by_study("color", names, _COLOURS), _by_study("shape", names, _SHAPES)
    dash = _by_study("strokeDash", names, _DASHES)
    all_of, of_frontier = alt.Chart(alt.Data(values=everything)), alt.Chart(alt.Data(values=frontier))
    layers = [
        all_of.mark_point(filled=True, size=22, opacity=0.3).encode(x=x, y=y, color=color, shape=shape),
        of_frontier.mark_line(interpolate="step-after", strokeWidth=1.6).encode(
            x=x, y=y, order="bits:Q", color=color, strokeDash=dash
        ),
        of_frontier.mark_rule(strokeWidth=1.2, opacity=0.6).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
        of_frontier.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=color, shape=shape),
    ]
    spoken = "; ".join(f"{name}: {len(points)} measured, {len(best[name])} on its frontier, "
                       f"{_ends(best[name])}" for name, points in measured.items())  # fmt: skip
    plot = alt.layer(*layers).properties(width=width, height=height_for(width, 380))
    return finish(plot, f"{axis_title(data)} against average bits of two studies. {spoken}.")


def _rows(points: dict[str, list[MeasuredPoint]]) -> list[dict[str, Any]]:
    return [
        {
            "study": name,
            "bits": point.bits,
            "value": point.value,
            "low": point.low if math.isfinite(point.low) else point.value,
            "high": point.high if math.isfinite(point.high) else point.value,
        }
        for name, measured in points.items()
        for point in measured
    ]


def _ends(points: list[MeasuredPoint]) -> str:
    low, high = points[0], points[-1]
    return f"from {low.value:.4g} at {low.bits:.2f} bits to {high.value:.4g} at {high.bits:.2f}"


def _by_study(channel: str, names: list[str], values: tuple[Any, ...]) -> Any:
    kinds = {"color": alt.Color, "shape": alt.Shape, "strokeDash": alt.StrokeDash}
    legend = (
        None
        if channel == "strokeDash"
        else alt.Legend(symbolOpacity=1, labelLimit=300, columns=1 if max(map(len, names)) > 22 else 2)
    )
    return kinds[channel]("study:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=list(values)))


def costs_by_operation(costs: Costs, unit: str, width: int) -> Any:
    """For each operation a box of each study, the most sensitive operation of both first."""
    every = [cost for found in costs.values() for cost in found]
    operations = in_order(cost.operation for cost in every)
    order = sorted(operations, key=lambda name: -max(_median(found, name) for found in costs.values()))
    band = alt.Y("operation:N", title=None, scale=alt.Scale(domain=order, type="band", paddingInner=0.3))
    beside = alt.YOffset("study:N", scale=alt.Scale(domain=list(costs), paddingInner=0.25))
    value = alt.X("cost:Q", title=cost_title(unit), axis=alt.Axis(tickCount=6), scale=cost_axis(every))
    boxes = _boxes(costs, "operation", {"y": band, "yOffset": beside}, "x", value, 9)
    spoken = "; ".join(
        f"{study}: " + ", ".join(f"{name} {_median(found, name):.2f}" for name in order[:4] if _has(found, name))
        for study, found in costs.items()
    )
    plot = alt.layer(*boxes).properties(width=width, height=34 * len(order))
    return finish(plot, f"Box plots of the cost of going down a bit by operation. Medians of {spoken}.")


def costs_by_block(costs: Costs, unit: str, width: int) -> Any:
    """A panel for each study, block by block along its depth, with one axis of costs."""
    every = [cost for found in costs.values() for cost in found]
    scale = cost_axis(every, domain=[min(0.0, *(c.cost for c in every)), max(c.cost for c in every)], nice=True)
    many = max(len({cost.block for cost in found}) for found in costs.values()) > 9
    panels = []
    for number, (study, found) in enumerate(costs.items()):
        order = in_order(cost.block for cost in found)
        axis = alt.Axis(labelAngle=-90 if many else -45, labelLimit=150, labelOverlap="parity")
        band = alt.X("block:N", title=None, axis=axis, scale=alt.Scale(domain=order, type="band"))
        value = alt.Y("cost:Q", title=None if number else cost_title(unit), scale=scale)
        boxes = _boxes(
            {study: found}, "block", {"x": band}, "y", value, max(5, min(16, 240 // len(order))), list(costs)
        )
        title = alt.TitleParams(study, anchor="start", fontSize=12.5, fontWeight=500)
        panels.append(alt.layer(*boxes).properties(width=width // 2 - 50, height=220, title=title))
    spoken = "; ".join(f"{study}: most in {_dearest(found)}" for study, found in costs.items())
    return finish(alt.hconcat(*panels, spacing=14), f"Box plots of the cost of going down a bit by block. {spoken}.")


def _boxes(
    costs: Costs, key: str, place: dict[str, Any], along: str, value: Any, size: int, names: list[str] | None = None
) -> list[Any]:
    """Whiskers, boxes, medians, and marks for groups too small for a box; coloured by study."""
    names = names or list(costs)
    color, shape = _by_study("color", names, _COLOURS), _by_study("shape", names, _SHAPES)
    groups = {study: groups_by(found, key) for study, found in costs.items()}
    boxed = [{"study": study, **row} for study, found in groups.items() for row in summaries(found, key)]
    alone = [
        {"study": study, key: name, "cost": cost.cost}
        for study, found in groups.items()
        for name, group in found.items()
        if len(group) < 3
        for cost in group
    ]
    axis = alt.X if along == "x" else alt.Y
    summary = alt.Chart(alt.Data(values=boxed)).encode(**place, color=color)
    ends = lambda low, high: {along: axis(f"{low}:Q"), f"{along}2": f"{high}:Q"}  # noqa: E731
    middle = summary.mark_tick(thickness=2.5, size=size).encode(
        **{along: axis("median:Q"), "color": alt.value("#ffffff")}
    )
    return [
        nothing_lost().encode(**{along: value}),
        summary.mark_rule(strokeWidth=1.3).encode(**ends("low", "high")),
        summary.mark_bar(size=size, opacity=0.75, stroke="#30363d", strokeWidth=0.6).encode(**ends("q1", "q3")),
        middle,
        alt.Chart(alt.Data(values=alone))
        .mark_point(filled=True, size=40, opacity=0.95)
        .encode(**place, **{along: value}, color=color, shape=shape),
    ]


def _has(costs: list[LayerCost], operation: str) -> bool:
    return any(cost.operation == operation for cost in costs)


def _median(costs: list[LayerCost], operation: str) -> float:
    found = [cost.cost for cost in costs if cost.operation == operation]
    return statistics.median(found) if found else -math.inf


def _dearest(costs: list[LayerCost]) -> str:
    medians = {name: statistics.median(c.cost for c in group) for name, group in groups_by(costs, "block").items()}
    name = max(medians, key=lambda block: medians[block])
    return f"{name} ({medians[name]:.2f})"
