"""Quality against average bits: every measured configuration, and the Pareto frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from qua2sedimo.report.charts.labels import LIMIT, PLACES, label_places
from qua2sedimo.report.charts.style import GREEN, GREY, POINT_KINDS, finish, height_for, ticks_for
from qua2sedimo.report.data import MeasuredPoint, MetricInfo
from qua2sedimo.report.text import digits_for, has_interval, interval, titled
from qua2sedimo.search.pareto import pareto_front


def quality_against_bits(
    points: Sequence[MeasuredPoint], info: MetricInfo, width: Any = 720, budget: float = math.nan
) -> Any:
    """All measured configurations with their intervals: random ones as dots, uniform ones and ours with their names."""
    shown = [p for kind in POINT_KINDS for p in points if p.kind == kind and math.isfinite(p.quality.value)]
    height = height_for(width, 380)
    plot = (width - 60, height - 40) if isinstance(width, (int, float)) else (640, 340)
    named = ("uniform", "outside")
    labels = [p.label or "ours" if p.kind == "ours" else p.label if p.kind in named else "" for p in shown]
    places = label_places([(p.bits, p.quality.value) for p in shown], labels, *plot)
    rows = [
        {**row, "kind": POINT_KINDS[p.kind][0], "label": label, "about": p.label or row["kind"], "place": place}
        for row, p, label, place in zip(point_rows(shown), shown, labels, places)
    ]
    present = [style for kind, style in POINT_KINDS.items() if any(point.kind == kind for point in shown)]
    names, colours, shapes, sizes = (list(column) for column in zip(*present))
    x, y = axes(info, ticks_for(width, 8))
    legend = alt.Legend(symbolOpacity=1)  # or it would take the intervals' opacity
    color = alt.Color("kind:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=colours))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=color)
    marks = base.mark_point(filled=True, opacity=0.9).encode(
        y=y,
        shape=alt.Shape("kind:N", title=None, scale=alt.Scale(domain=names, range=shapes)),
        size=alt.Size("kind:O", title=None, scale=alt.Scale(domain=names, range=sizes)),
        tooltip=[
            alt.Tooltip("about:N", title="configuration"),
            alt.Tooltip("bits:Q", title="bits per weight", format=".2f"),
            alt.Tooltip("value:Q", title=titled(info), format=".4~g"),
            alt.Tooltip("interval:N", title="95 % interval"),
        ],
    )
    asked = alt.Chart(alt.Data(values=[{"bits": budget}] if math.isfinite(budget) else []))
    front = alt.Chart(alt.Data(values=point_rows(efficient(shown, info)))).mark_line(
        interpolate="step-after", color="currentColor", opacity=0.45, strokeWidth=1.5
    )
    layers = [
        asked.mark_rule(strokeDash=[5, 4], color=GREY, strokeWidth=1.2).encode(x="bits:Q"),
        *_full_precision(points),
        front.encode(x="bits:Q", y="value:Q", order="bits:Q"),
        intervals(base, strokeWidth=1.3, opacity=0.45),
        marks,
        *(_labels(base, y, place) for place in PLACES if place in places),
    ]
    return finish(
        alt.layer(*layers).properties(width=width, height=height),
        f"Scatter plot of {axis_title(info)} against average bits per weight: {counted(points)}.",
    )


def point_rows(points: Sequence[MeasuredPoint]) -> list[dict[str, Any]]:
    """A row for each point; without an interval its ends are None, and no line is drawn."""
    digits = digits_for([point.quality for point in points])
    return [
        {
            "bits": point.bits,
            "value": point.quality.value,
            "low": point.quality.low if has_interval(point.quality) else None,
            "high": point.quality.high if has_interval(point.quality) else None,
            "interval": interval(point.quality, digits) or "none",
            "kind": point.kind,
        }
        for point in points
    ]


def intervals(base: Any, **look: Any) -> Any:
    """A vertical line for each row that has an interval."""
    return base.mark_rule(**look).transform_filter("isValid(datum.low)").encode(y=alt.Y("low:Q"), y2="high:Q")


def axes(info: MetricInfo, ticks: int) -> tuple[alt.X, alt.Y]:
    """Average bits and the objective."""
    scale = alt.Scale(zero=False)
    bits = alt.X(
        "bits:Q", title="average bits per weight, overhead counted", axis=alt.Axis(tickCount=ticks), scale=scale
    )
    return bits, alt.Y("value:Q", title=axis_title(info), scale=scale)


def efficient(points: Sequence[MeasuredPoint], info: MetricInfo) -> list[MeasuredPoint]:
    """The Pareto frontier: points that no measured one beats in both size and quality, smallest first."""
    sign = 1 if info.higher_is_better else -1
    return [points[i] for i in pareto_front([p.bits for p in points], [sign * p.quality.value for p in points])]


def axis_title(info: MetricInfo) -> str:
    """The objective with its unit and which way is better."""
    return f"{titled(info)}, {'higher' if info.higher_is_better else 'lower'} is better"


def counted(points: Sequence[MeasuredPoint]) -> str:
    """How many points of each kind: ``120 random, 6 uniform``."""
    counts = {name: sum(p.kind == kind for p in points) for kind, (name, *_) in POINT_KINDS.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _full_precision(points: Sequence[MeasuredPoint]) -> list[Any]:
    """A horizontal line at the value of full precision, if that was measured."""
    full = [p for p in points if p.kind == "full" and math.isfinite(p.quality.value)][:1]
    if not full:
        return []
    rows = [{"value": p.quality.value, "label": p.label or "full precision"} for p in full]
    base = alt.Chart(alt.Data(values=rows)).encode(y="value:Q")
    text = base.mark_text(align="right", dy=-7, dx=-4, color="currentColor", opacity=0.75)
    return [base.mark_rule(color=GREEN, strokeWidth=1.5), text.encode(x=alt.value("width"), text="label:N")]


def _labels(base: Any, y: alt.Y, place: str) -> Any:
    dx, dy, align = PLACES[place]
    text = base.mark_text(align=align, dx=dx, dy=dy, fontWeight=500, limit=LIMIT)
    return text.transform_filter(f"datum.place === '{place}'").encode(
        y=y, text="label:N", color=alt.value("currentColor")
    )
