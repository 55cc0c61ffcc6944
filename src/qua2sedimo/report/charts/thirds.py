"""Stacked bars: where damage is expected, by operation, and in which steps of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from qua2sedimo.report.charts.style import BLUE, ORANGE, PURPLE, finish
from qua2sedimo.sensitivity import THIRDS, ExpectedDamage, ExpectedOfGroup, expected_by


def damage_by_step(rows: Sequence[ExpectedDamage], width: Any = 720) -> Any:
    """For each operation a bar of its share of the expected damage, in a piece for each third of the steps; the most
    damage first."""
    groups = sorted(expected_by(rows, "operation"), key=lambda group: -group.share)
    names = [f"{third} steps" for third in THIRDS]
    values = [
        {
            "operation": group.name, "steps": name, "place": i, "share": group.share * group.thirds[i],
            "of": group.thirds[i], "layers": group.layers, "per_weight": group.per_weight,
        }
        for group in groups
        for i, name in enumerate(names)
    ]  # fmt: skip
    colour = alt.Color("steps:N", title=None, scale=alt.Scale(domain=names, range=[PURPLE, ORANGE, BLUE]))
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            x=alt.X(
                "share:Q", title="share of the expected damage at about 3 bits", axis=alt.Axis(format="%", tickCount=6)
            ),
            y=alt.Y("operation:N", title=None, sort=[group.name for group in groups], axis=alt.Axis(ticks=False)),
            color=colour,
            order="place:O",
            tooltip=[
                alt.Tooltip("operation:N"),
                alt.Tooltip("steps:N"),
                alt.Tooltip("share:Q", title="of all damage", format=".1%"),
                alt.Tooltip("of:Q", title="of the operation's damage", format=".0%"),
                alt.Tooltip("per_weight:Q", title="damage a weight, mean of all: 1", format=".2~g"),
                alt.Tooltip("layers:Q"),
            ],
        )
        .properties(width=width, height=max(80, 25 * len(groups)))
    )
    return finish(chart, f"Stacked bars of the expected damage of each operation. {_spoken(groups)}.")


def _spoken(groups: Sequence[ExpectedOfGroup]) -> str:
    return "; ".join(
        f"{group.name} {group.share:.0%}, of it " + ", ".join(f"{t:.0%} {n}" for t, n in zip(group.thirds, THIRDS))
        for group in groups[:4]
    )
