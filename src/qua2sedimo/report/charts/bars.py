"""Stacked bars: which options were chosen for the layers of each operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from qua2sedimo.report.charts.style import finish, in_order, is_dark, option_shade, short_option
from qua2sedimo.report.data import LayerChoice

#: Columns of the legend beside one study.
_COLUMNS = alt.ExprRef("width < 270 ? 2 : width < 430 ? 3 : min(7, floor(width / 100))")


def options_by_operation(studies: Mapping[str, Sequence[LayerChoice]], width: Any = 720) -> Any:
    """For each operation a bar of its layers, in one piece for each option; a titled panel for each of two studies."""
    every = [choice for choices in studies.values() for choice in choices]
    operations = in_order(choice.operation for choice in every)
    options = sorted({(choice.method, choice.bits, choice.option) for choice in every})
    names, alone = [name for _, _, name in options], len(studies) == 1
    colour = alt.Color(
        "option:N",
        title=None,
        scale=alt.Scale(domain=names, range=[option_shade(name) for name in names]),
        legend=alt.Legend(columns=_COLUMNS if alone else min(8, len(names))),
    )
    panels: list[Any] = []
    for name, choices in studies.items():
        axis = alt.Axis(ticks=False, labels=not panels)
        y = alt.Y("operation:N", title=None, scale=alt.Scale(domain=operations, paddingInner=0.28), axis=axis)
        panel = _bars(_rows(choices, names), y, colour).properties(height=max(80, 25 * len(operations)))
        title = alt.TitleParams(name, anchor="start", fontSize=12.5, fontWeight=500)
        panels.append(panel if alone else panel.properties(width=round((width - 90) / len(studies)), title=title))
    chart = panels[0].properties(width=width) if alone else alt.hconcat(*panels, spacing=16)
    spoken = "; ".join((f"{name}: " if not alone else "") + _most_often(found) for name, found in studies.items())
    return finish(chart, f"Stacked bars of the options chosen for each operation's layers. {spoken}.")


def _bars(rows: list[dict[str, Any]], y: alt.Y, colour: alt.Color) -> Any:
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("operation", "option")]
    tooltip += [alt.Tooltip("layers:Q"), alt.Tooltip("of:Q", title="of the layers")]
    axis = alt.Axis(format="%", tickCount=5)
    x = alt.X("layers:Q", stack="normalize", title="share of the operation's layers", axis=axis)
    base = alt.Chart(alt.Data(values=rows)).encode(y=y, order="place:O")
    bars = base.mark_bar(stroke="#808894", strokeOpacity=0.35, strokeWidth=0.75)
    ink = alt.condition("datum.dark", alt.value("#ffffff"), alt.value("#20252b"))
    middle = alt.X("layers:Q", stack="normalize", bandPosition=0.5)
    texts = base.mark_text(fontSize=11).encode(x=middle, text="text:N", color=ink, detail="option:N")
    return alt.layer(bars.encode(x=x, color=colour, tooltip=tooltip), texts)


def _rows(choices: Sequence[LayerChoice], options: list[str]) -> list[dict[str, Any]]:
    """A row for each piece of a bar; its text if there is room."""
    of = Counter(choice.operation for choice in choices)
    return [
        {
            "operation": operation,
            "option": option,
            "place": options.index(option),
            "layers": layers,
            "of": of[operation],
            "text": short_option(option) if layers / of[operation] >= 0.06 else "",
            "dark": is_dark(option_shade(option)),
        }
        for (operation, option), layers in Counter((choice.operation, choice.option) for choice in choices).items()
    ]


def _most_often(choices: Sequence[LayerChoice]) -> str:
    common = Counter(choice.option for choice in choices).most_common(5)
    return "Most often: " + ", ".join(f"{option} {count}" for option, count in common)
