"""Two studies in one chart: their frontiers, the sensitivity of their operations and blocks, and what was chosen."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.report.charts.bars import options_by_operation
from qua2sedimo.report.charts.boxes import boxes, cost_axis, medians_by, nothing_lost, step_rows
from qua2sedimo.report.charts.figures import BOXES, COST, LUCK, SIZES, Figure, roots
from qua2sedimo.report.charts.quality import axes, axis_title, efficient, intervals, point_rows
from qua2sedimo.report.charts.style import ORANGE, cost_title, finish, height_for, in_order, option_key
from qua2sedimo.report.data import MeasuredPoint, MetricInfo, ReportData
from qua2sedimo.sensitivity.tables import LayerStep

#: Colour, shape and dashes of the first and the second study, which also differ without colour.
_COLOURS, _SHAPES, _DASHES = ("#12508f", ORANGE), ("circle", "triangle-up"), ([1, 0], [5, 3])
Steps = dict[str, list[LayerStep]]


def two_study_figures(studies: dict[str, ReportData], column: int, page: int) -> list[Figure]:
    """Every figure for which both studies (name → data) have the data; ``half`` ones fit into a column.

    ``column`` and ``page`` are widths in pixels. Raises :class:`Qua2SeDiMoError` for other than two studies, or two
    that cannot be compared.
    """
    check_comparable(studies)
    named = " and ".join(f"“{name}” ({data.model})" for name, data in studies.items())
    first, figures = next(iter(studies.values())), []
    points = {name: _measured(data) for name, data in studies.items()}
    if all(points.values()):
        text = (
            f"Measured configurations of {named}. The stepped lines are the Pareto frontiers, the best measured at "
            f"each size, with vertical lines for 95 % intervals. {LUCK} {SIZES}"
        )
        chart = frontiers(points, first.objective, column)
        figures.append(Figure("quality-against-bits", f"{first.objective.title} against size", text, chart, True))
    steps: Steps = {name: data.steps for name, data in studies.items()}
    if all(steps.values()):
        unit, every = first.cost_unit, [s for found in steps.values() for s in found]
        text = f"{COST.format(of=f' of {named}', unit=unit or 'score')} {BOXES}{roots(every)}"
        by_operation = costs_by_operation(steps, unit, column)
        figures.append(Figure("sensitivity-by-operation", "Sensitivity by operation", text, by_operation, True))
        by_block = costs_by_block(steps, unit, page)
        figures.append(Figure("sensitivity-by-block", "Sensitivity by block", text, by_block))
    if all(data.choices for data in studies.values()):
        sizes = ", ".join(f"{data.ours_bits:.2f} bits per weight in “{name}”" for name, data in studies.items())
        text = f"The share of each operation's layers that got each option: {sizes}. {option_key()}"
        chosen = options_by_operation({name: data.choices for name, data in studies.items()}, page)
        figures.append(Figure("options-by-operation", "Options by operation", text, chosen))
    return figures


def check_comparable(studies: dict[str, ReportData]) -> None:
    """Raise :class:`Qua2SeDiMoError` unless these are two studies of one objective."""
    if len(studies) != 2:
        raise Qua2SeDiMoError(f"expected two studies of different names, got {len(studies)}")
    (a, first), (b, second) = studies.items()
    if first.objective.name != second.objective.name:
        raise Qua2SeDiMoError(
            f"'{a}' measures {first.objective.name}, '{b}' measures {second.objective.name}: "
            "their figures have no common axis",
            "Compare studies with the same 'objective:' in study.yaml.",
        )
    if first.steps and second.steps and first.cost_unit != second.cost_unit:
        raise Qua2SeDiMoError(
            f"costs of '{a}' are in {first.cost_unit}, those of '{b}' in {second.cost_unit}",
            "Fit both predictors with this version: qua2sedimo fit STUDY.",
        )


def _measured(data: ReportData) -> list[MeasuredPoint]:
    return [point for point in data.points if point.kind != "full" and math.isfinite(point.quality.value)]


def frontiers(points: dict[str, list[MeasuredPoint]], info: MetricInfo, width: int) -> Any:
    """All measured configurations of both studies, and the Pareto frontier of each."""
    best = {name: efficient(measured, info) for name, measured in points.items()}
    every, front = (
        alt.Chart(alt.Data(values=[{**row, "study": name} for name in shown for row in point_rows(shown[name])]))
        for shown in (points, best)
    )
    x, y = axes(info, 6)
    color, shape, dash = _by_study(list(points))
    layers = [
        every.mark_point(filled=True, size=22, opacity=0.3).encode(x=x, y=y, color=color, shape=shape),
        front.mark_line(interpolate="step-after", strokeWidth=1.6).encode(
            x=x, y=y, order="bits:Q", color=color, strokeDash=dash
        ),
        intervals(front, strokeWidth=1.2, opacity=0.6).encode(x=x, color=color),
        front.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=color, shape=shape),
    ]
    spoken = "; ".join(f"{name}: {len(measured)} measured, {len(best[name])} on its frontier, "
                       f"{_ends(best[name])}" for name, measured in points.items())  # fmt: skip
    plot = alt.layer(*layers).properties(width=width, height=height_for(width, 380))
    return finish(plot, f"{axis_title(info)} against average bits of two studies. {spoken}.")


def _ends(points: list[MeasuredPoint]) -> str:
    low, high = points[0], points[-1]
    return f"from {low.quality.value:.4g} at {low.bits:.2f} bits to {high.quality.value:.4g} at {high.bits:.2f}"


def _by_study(names: list[str]) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    legend = alt.Legend(symbolOpacity=1, labelLimit=300, columns=1 if max(map(len, names)) > 22 else 2)
    color, shape, dash = ({"title": None, "scale": alt.Scale(domain=names, range=list(values))}
                          for values in (_COLOURS, _SHAPES, _DASHES))  # fmt: skip
    return (
        alt.Color("study:N", legend=legend, **color),
        alt.Shape("study:N", legend=legend, **shape),
        alt.StrokeDash("study:N", legend=None, **dash),
    )


def costs_by_operation(steps: Steps, unit: str, width: int) -> Any:
    """For each operation a box of each study, the most sensitive operation of both first."""
    every = [s for found in steps.values() for s in found]
    medians = {study: medians_by(found, "operation") for study, found in steps.items()}
    names = in_order(s.layer.operation for s in every)
    order = sorted(names, key=lambda name: -max(of.get(name, -math.inf) for of in medians.values()))
    y = alt.Y("operation:N", title=None, scale=alt.Scale(domain=order, type="band", paddingInner=0.3))
    beside = alt.YOffset("study:N", scale=alt.Scale(domain=list(steps), paddingInner=0.25))
    x = alt.X("cost:Q", title=cost_title(unit), axis=alt.Axis(tickCount=6), scale=cost_axis(every, nice=True))
    plot = _boxes(steps, "operation", {"x": x, "y": y}, 9, list(steps), yOffset=beside)
    spoken = "; ".join(
        f"{study}: " + ", ".join(f"{name} {of[name]:.2f}" for name in order[:4] if name in of)
        for study, of in medians.items()
    )
    return finish(
        plot.properties(width=width, height=34 * len(order)),
        f"Box plots of what going from 4 to 3 bits costs, by operation. Medians of {spoken}.",
    )


def costs_by_block(steps: Steps, unit: str, width: int) -> Any:
    """A panel for each study, block by block along its depth, with one axis of costs."""
    every = [s for found in steps.values() for s in found]
    costs = [s.step.cost for s in every]
    scale = cost_axis(every, domain=[min(0.0, *costs), max(costs)], nice=True)
    many = max(len({s.layer.block for s in found}) for found in steps.values()) > 9
    axis = alt.Axis(labelAngle=-90 if many else -45, labelLimit=150, labelOverlap="parity")
    panels: list[Any] = []
    spoken = []
    for study, found in steps.items():
        medians = medians_by(found, "block")
        order, worst = in_order(medians), max(medians, key=lambda block: medians[block])
        x = alt.X("block:N", title=None, axis=axis, scale=alt.Scale(domain=order, type="band"))
        y = alt.Y("cost:Q", title=None if panels else cost_title(unit), scale=scale)
        size = max(5, min(16, 240 // len(order)))
        title = alt.TitleParams(study, anchor="start", fontSize=12.5, fontWeight=500)
        plot = _boxes({study: found}, "block", {"x": x, "y": y}, size, list(steps))
        panels.append(plot.properties(width=width // 2 - 50, height=220, title=title))
        spoken.append(f"{study}: most in {worst} ({medians[worst]:.2f})")
    said = f"Box plots of what going from 4 to 3 bits costs, by block. {'; '.join(spoken)}."
    return finish(alt.hconcat(*panels, spacing=14), said)


def _boxes(steps: Steps, key: str, axes: dict[str, Any], size: int, names: list[str], **offset: Any) -> Any:
    """Boxes, and marks for groups that are too small for one; coloured by study."""
    color, shape, _ = _by_study(names)
    rows = [{**row, "study": study} for study, found in steps.items() for row in step_rows(found, key)]
    look = {
        "box": {"opacity": 0.75, "stroke": "#30363d", "strokeWidth": 0.6},
        "rule": {"color": "#30363d", "strokeWidth": 1.3},
        "median": {"color": "#ffffff", "thickness": 2.5},
    }
    marks = alt.Chart().mark_point(filled=True, size=40, opacity=0.95).transform_filter("datum.few")
    return alt.layer(
        nothing_lost(axes),
        boxes({**axes, **offset, "color": color}, size, **look),
        marks.encode(**axes, **offset, color=color, shape=shape),
        data=alt.Data(values=rows),
    )
