"""The charts of a report; one specification serves the page and the figure files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from qua2sedimo.report import boxes, maps
from qua2sedimo.report.bars import options_by_operation
from qua2sedimo.report.costs import layer_costs
from qua2sedimo.report.data import MeasuredPoint, ReportData
from qua2sedimo.report.labels import LIMIT, PLACES, label_places
from qua2sedimo.report.picture_grid import FEW, MOST, numbered, picture_grid
from qua2sedimo.report.style import (
    GREEN,
    GREY,
    POINT_KINDS,
    finish,
    height_for,
    option_key,
    ticks_for,
    uneven,
)
from qua2sedimo.report.trust import predicted_against_measured, predictor_quality

Width = Any  # pixels, or "container" for as wide as the page allows


@dataclass(frozen=True, eq=False)
class Figure:
    """A chart with its file name, title, and the sentences that say how to read it.

    ``half``: narrow enough to stand beside another on a wide screen. ``least``: pixels it needs to be readable.
    """

    name: str
    title: str
    text: str
    chart: Any
    half: bool = False
    least: int = 0


def all_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """Every figure for which the report has data, in the order they are read."""
    pictures = picture_figures(data, width if isinstance(width, int) else 720)
    return pictures + quality_figures(data, width) + sensitivity_figures(data, width) + predictor_figures(data, width)


def picture_figures(data: ReportData, width: int = 720) -> list[Figure]:
    """The same pictures by each model, if there are at least two."""
    if len(data.pictures) < 2:
        return []
    shown = data.captions[:MOST]
    first = f"The first {len(shown)} of {len(data.captions)} pictures" if len(data.captions) > MOST else "Pictures"
    text = (
        f"{first} by each model. A column has one prompt and one starting noise, only the weights differ: "
        f"{numbered(shown)}."
    )
    chart = picture_grid(data, width)
    return [Figure("pictures", "The same pictures, by each model", text, chart, half=len(shown) <= FEW)]


def quality_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """Quality against average bits, of all measured configurations."""
    if not any(math.isfinite(point.value) and point.kind != "full" for point in data.points):
        return []
    budget = f"the dashed line is the asked budget of {data.budget_bits:g} bits, "
    text = (
        f"Each mark is one measured configuration: {_counted(data.points)}. Upright lines are 95 % intervals; "
        f"{budget if math.isfinite(data.budget_bits) else ''}the stepped line joins the best measured at "
        "each size. The best of many measurements is partly luck, so only marks whose intervals lie apart differ. "
        "Sizes count every scale, zero point and codebook."
    )
    chart = quality_against_bits(data, width)
    return [Figure("quality-against-bits", f"{data.objective_info.title} against size", text, chart, least=_LABELLED)]


#: Pixels that the labels of marks need.
_LABELLED = 520


def sensitivity_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """Where going down a bit hurts, and what was chosen there."""
    costs, figures = layer_costs(data.scores), []
    roots = ROOTS if uneven([cost.cost for cost in costs]) else ""
    if costs:
        figures += [
            Figure(
                "sensitivity-map",
                "Sensitivity map",
                f"What going from about 4 to about 3 bits is expected to cost, {_unit(data)}: the mean over the layers "
                f"of a cell, all other layers left as they are.{roots}",
                maps.sensitivity_map(costs, data.cost_unit, width),
                least=maps.least_width(costs),
            )
        ]
    if data.choices:
        figures += [
            Figure(
                "chosen-options",
                "What was chosen",
                f"The average bits of each cell, with the option, or how many different ones (2×). {option_key()}",
                maps.choice_map(data.choices, width),
                least=maps.least_width(data.choices),
            )
        ]
    if costs:
        figures += [
            Figure(
                "sensitivity-by-operation",
                "Sensitivity by operation",
                f"{_BOXES} Most sensitive first.{roots}",
                boxes.sensitivity_by_operation(costs, width, data.cost_unit),
            ),
            Figure(
                "sensitivity-by-block",
                "Sensitivity by block",
                f"The same costs along the network's depth. {_BOXES}{roots}",
                boxes.sensitivity_by_block(costs, width, data.cost_unit),
                least=90 + 22 * min(24, len({cost.block for cost in costs})),
            ),
        ]
    if data.choices:
        figures += [
            Figure(
                "options-by-operation",
                "Options by operation",
                f"How many of an operation's layers got each option. {option_key()}",
                options_by_operation(data.choices, width),
            )
        ]
    return figures


_BOXES = (
    "One mark a layer. Boxes span the middle half of the layers, thick lines are medians, whiskers reach the furthest "
    "layer within 1.5 boxes."
)

#: Said where it is so.
ROOTS = " Costs are drawn by their square root, as a few are far above all others."


def _unit(data: ReportData) -> str:
    return f"in {data.cost_unit}" if data.cost_unit else "in score"


def predictor_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """How far the predictor can be trusted."""
    quality = data.predictor
    if quality is None:
        return []
    figures = [
        Figure(
            "predictor-quality",
            "Rank correlation on unseen records",
            "Spearman's correlation with what was measured; 1 is a perfect order. Lines: 95 % intervals."
            + (
                " The dashed line is what noise in the measurements lets anyone reach." if quality.noise_ceiling else ""
            ),
            predictor_quality(quality, width),
            half=True,
        )
    ]
    if quality.predicted:
        figures += [
            Figure(
                "predicted-against-measured",
                "Predicted against measured",
                f"{len(quality.predicted)} configurations the fit never saw. Only their order matters.",
                predicted_against_measured(quality, axis_title(data), width),
                half=True,
            )
        ]
    return figures


def quality_against_bits(data: ReportData, width: Width = 720) -> Any:
    """All measured configurations: random as dots, uniform labelled, ours highlighted, with intervals."""
    shown = [p for kind in POINT_KINDS for p in data.points if p.kind == kind and math.isfinite(p.value)]
    height = height_for(width, 380)
    plot = (width - 60, height - 40) if isinstance(width, (int, float)) else (640, 340)
    places = label_places([(p.bits, p.value) for p in shown], [_label(p) for p in shown], *plot)
    rows: list[dict[str, Any]] = [
        {
            "bits": point.bits,
            "value": point.value,
            "low": point.low if math.isfinite(point.low) else point.value,
            "high": point.high if math.isfinite(point.high) else point.value,
            "kind": POINT_KINDS[point.kind][0],
            "label": _label(point),
            "about": point.label or POINT_KINDS[point.kind][0],
            "place": place,
        }
        for point, place in zip(shown, places)
    ]
    present = [style for kind, style in POINT_KINDS.items() if any(point.kind == kind for point in shown)]
    names, colours, shapes, sizes = (list(column) for column in zip(*present))
    x = alt.X(
        "bits:Q",
        title="average bits per weight, overhead counted",
        axis=alt.Axis(tickCount=ticks_for(width, 8)),
        scale=alt.Scale(zero=False),
    )
    y = alt.Y("value:Q", title=axis_title(data), scale=alt.Scale(zero=False))
    legend = alt.Legend(symbolOpacity=1)  # the intervals' opacity would be taken
    color = alt.Color("kind:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=colours))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=color)
    intervals = base.mark_rule(strokeWidth=1.3, opacity=0.45).encode(y=alt.Y("low:Q"), y2="high:Q")
    marks = base.mark_point(filled=True, opacity=0.9).encode(
        y=y,
        shape=alt.Shape("kind:N", title=None, scale=alt.Scale(domain=names, range=shapes)),
        size=alt.Size("kind:O", title=None, scale=alt.Scale(domain=names, range=sizes)),
        tooltip=[
            alt.Tooltip("about:N", title="configuration"),
            alt.Tooltip("bits:Q", title="bits per weight", format=".2f"),
            alt.Tooltip("value:Q", title=data.objective_info.title, format=".4~g"),
            alt.Tooltip("low:Q", title="from", format=".4~g"),
            alt.Tooltip("high:Q", title="to", format=".4~g"),
        ],
    )
    asked = [{"bits": data.budget_bits}] if math.isfinite(data.budget_bits) else []
    budget = (
        alt.Chart(alt.Data(values=asked)).mark_rule(strokeDash=[5, 4], color=GREY, strokeWidth=1.2).encode(x="bits:Q")
    )
    labels = [_labels(base, y, place) for place in PLACES if place in places]
    description = f"Scatter plot of {axis_title(data)} against average bits per weight: {_counted(data.points)}."
    best = [{"bits": p.bits, "value": p.value} for p in efficient(shown, data.objective_info.higher_is_better)]
    steps = alt.Chart(alt.Data(values=best)).mark_line(
        interpolate="step-after", color="currentColor", opacity=0.45, strokeWidth=1.5
    )
    frontier = steps.encode(x="bits:Q", y="value:Q", order="bits:Q")
    return finish(
        alt.layer(budget, *_full_precision(data), frontier, intervals, marks, *labels).properties(
            width=width, height=height
        ),
        description,
    )


def efficient(points: Sequence[MeasuredPoint], higher_is_better: bool) -> list[MeasuredPoint]:
    """The points than which none measured is both no larger and better, from small to large."""
    sign = 1 if higher_is_better else -1
    found: list[MeasuredPoint] = []
    for point in sorted(points, key=lambda p: (p.bits, -sign * p.value)):
        if not found or sign * point.value > sign * found[-1].value:
            found.append(point)
    return found


def _full_precision(data: ReportData) -> list[Any]:
    """A line at the full-precision value, where that is a number (a distance to itself is none)."""
    rows: list[dict[str, Any]] = [
        {"value": p.value, "label": p.label or "full precision"} for p in data.points if p.kind == "full"
    ]
    rows = [row for row in rows if math.isfinite(row["value"])][:1]
    if not rows:
        return []
    base = alt.Chart(alt.Data(values=rows)).encode(y="value:Q")
    text = base.mark_text(align="right", dy=-7, dx=-4, color="currentColor", opacity=0.75)
    return [base.mark_rule(color=GREEN, strokeWidth=1.5), text.encode(x=alt.value("width"), text="label:N")]


def _label(point: MeasuredPoint) -> str:
    if point.kind == "ours":
        return point.label or "ours"
    return point.label if point.kind == "uniform" else ""


def _labels(base: Any, y: alt.Y, place: str) -> Any:
    dx, dy, align = PLACES[place]
    text = base.mark_text(align=align, dx=dx, dy=dy, fontWeight=500, limit=LIMIT)
    return text.transform_filter(f"datum.place === '{place}'").encode(
        y=y, text="label:N", color=alt.value("currentColor")
    )


def axis_title(data: ReportData) -> str:
    """The objective with its unit and which way is better."""
    info = data.objective_info
    unit = f" ({info.unit})" if info.unit else ""
    return f"{info.title}{unit}, {'higher' if info.higher_is_better else 'lower'} is better"


def _counted(points: list[MeasuredPoint]) -> str:
    counts = {name: sum(p.kind == kind for p in points) for kind, (name, *_) in POINT_KINDS.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
