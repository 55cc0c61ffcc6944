"""Charts of how far the predictor can be trusted."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from qua2sedimo.report.charts.style import BLUE, GREEN, GREY, VERMILION, finish, height_for
from qua2sedimo.report.data import PredictorQuality
from qua2sedimo.report.text import has_interval, interval


def predicted_against_measured(quality: PredictorQuality, measured_title: str, width: Any = 720) -> Any:
    """Each configuration that the predictor was not fitted to: its predicted and its measured value."""
    rows = [{"predicted": p, "measured": m} for p, m in quality.pairs if math.isfinite(p) and math.isfinite(m)]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_circle(size=46, color=BLUE, opacity=0.7)
        .encode(
            x=alt.X("predicted:Q", title="predicted", axis=alt.Axis(tickCount=6), scale=alt.Scale(zero=False)),
            y=alt.Y("measured:Q", title=measured_title, scale=alt.Scale(zero=False)),
            tooltip=[alt.Tooltip("predicted:Q", format=".4~g"), alt.Tooltip("measured:Q", format=".4~g")],
        )
        .properties(width=width, height=height_for(width, 300))
    )
    correlation = quality.rank_correlation.value
    return finish(chart, f"Scatter plot of {len(rows)} unseen configurations, rank correlation {correlation:.2f}.")


def predictor_quality(quality: PredictorQuality, width: Any = 720) -> Any:
    """The predictor's rank correlation with its interval, beside its baselines and the noise ceiling."""
    named = {"this predictor": quality.rank_correlation, **quality.baselines}
    rows: list[dict[str, Any]] = [
        {"name": name, "value": v.value, "ours": name == "this predictor", "interval": interval(v, 2) or "none",
         **({"low": v.low, "high": v.high} if has_interval(v) else {})}
        for name, v in named.items()
        if math.isfinite(v.value)
    ]  # fmt: skip
    scale = alt.Scale(domainMax=1, zero=True, nice=False)
    x = alt.X("value:Q", title="rank correlation", axis=alt.Axis(tickCount=6), scale=scale)
    color = alt.condition("datum.ours", alt.value(VERMILION), alt.value(GREY))
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("name:N", title=None, sort=None), color=color)
    tooltip = [
        alt.Tooltip("name:N", title="model"),
        alt.Tooltip("value:Q", title="rank correlation", format=".3f"),
        alt.Tooltip("interval:N", title="95 % interval"),
    ]
    layers = [
        base.mark_rule(strokeWidth=2).transform_filter("isValid(datum.low)").encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, size=110, opacity=1).encode(x=x, tooltip=tooltip),
        base.mark_text(dy=-13, fontWeight=500).encode(
            x=x, text=alt.Text("value:Q", format=".2f"), color=alt.value("currentColor")
        ),
    ]
    if quality.noise_ceiling is not None and math.isfinite(quality.noise_ceiling):
        ceiling = alt.Chart(alt.Data(values=[{"value": quality.noise_ceiling}]))
        layers.insert(0, ceiling.mark_rule(strokeDash=[5, 4], color=GREEN, strokeWidth=1.5).encode(x="value:Q"))
    spoken = ", ".join(f"{row['name']} {row['value']:.2f}" for row in rows)
    return finish(
        alt.layer(*layers).properties(width=width, height=max(120, 56 * len(rows))),
        f"Rank correlation: {spoken}.",
    )
