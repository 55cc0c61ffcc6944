"""Stacked bars: which options the layers of each operation got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt

from qua2sedimo.report.costs import in_order
from qua2sedimo.report.data import LayerChoice
from qua2sedimo.report.style import finish, is_dark, option_shade, short_option

#: Of the legend: the names of options are short; a sheet of paper has room for seven.
_COLUMNS = alt.ExprRef("width < 270 ? 2 : width < 430 ? 3 : min(7, floor(width / 100))")


def options_by_operation(choices: Sequence[LayerChoice], width: Any = 720) -> Any:
    """For each operation a bar of its layers, in one piece for each option."""
    operations = in_order(choice.operation for choice in choices)
    options = _options(choices)
    chart = _bars(choices, operations, options, _COLUMNS).properties(width=width, height=_height(operations))
    return finish(chart, f"Stacked bars of the options chosen for each operation's layers. {_most_often(choices)}.")


def options_side_by_side(studies: dict[str, Sequence[LayerChoice]], width: int = 720) -> Any:
    """The bars of each study (name → choices) in a panel, with the same rows and colours."""
    every = [choice for choices in studies.values() for choice in choices]
    operations, options = in_order(choice.operation for choice in every), _options(every)
    panels = [
        _bars(choices, operations, options, min(8, len(options)), labels=not number).properties(
            width=round((width - 90) / len(studies)),
            height=_height(operations),
            title=alt.TitleParams(name, anchor="start", fontSize=12.5, fontWeight=500),
        )
        for number, (name, choices) in enumerate(studies.items())
    ]
    spoken = "; ".join(f"{name}: {_most_often(choices)}" for name, choices in studies.items())
    return finish(
        alt.hconcat(*panels, spacing=16), f"Stacked bars of the options chosen for each operation's layers. {spoken}."
    )


def _bars(
    choices: Sequence[LayerChoice], operations: list[str], options: list[str], columns: Any, labels: bool = True
) -> Any:
    rows = _pieces(choices, operations, options)
    y = alt.Y(
        "operation:N",
        title=None,
        scale=alt.Scale(domain=operations, paddingInner=0.28),
        axis=alt.Axis(ticks=False, labels=labels),
    )
    x = alt.X("from:Q", title="share of the operation's layers", axis=alt.Axis(format="%", tickCount=5))
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("operation", "option")]
    tooltip += [alt.Tooltip("layers:Q"), alt.Tooltip("of:Q", title="of the layers")]
    colours = alt.Scale(domain=options, range=[option_shade(option) for option in options])
    legend = alt.Legend(columns=columns)
    bars = base.mark_bar(stroke="#808894", strokeOpacity=0.35, strokeWidth=0.75).encode(
        x=x, x2="to:Q", color=alt.Color("option:N", title=None, scale=colours, legend=legend), tooltip=tooltip
    )
    ink = alt.condition("datum.dark", alt.value("#ffffff"), alt.value("#20252b"))
    return alt.layer(bars, base.mark_text(fontSize=11).encode(x="middle:Q", text="text:N", color=ink))


def _pieces(choices: Sequence[LayerChoice], operations: list[str], options: list[str]) -> list[dict[str, Any]]:
    """A row for each piece of a bar: where it begins and ends, and its text if there is room."""
    counts = Counter((choice.operation, choice.option) for choice in choices)
    rows: list[dict[str, Any]] = []
    for operation in operations:
        at, total = 0, sum(counts[operation, option] for option in options)
        for option in options:
            count = counts[operation, option]
            if count:
                share = {"from": at / total, "to": (at + count) / total, "middle": (at + count / 2) / total}
                text = short_option(option) if count / total >= 0.06 else ""
                dark = is_dark(option_shade(option))
                rows.append({"operation": operation, "option": option, "layers": count, "text": text, "dark": dark,
                             "of": total, **share})  # fmt: skip
                at += count
    return rows


def _options(choices: Sequence[LayerChoice]) -> list[str]:
    return sorted({choice.option for choice in choices}, key=_method_and_bits)


def _height(operations: list[str]) -> int:
    return max(80, 25 * len(operations))


def _most_often(choices: Sequence[LayerChoice]) -> str:
    common = Counter(choice.option for choice in choices).most_common(5)
    return "Most often: " + ", ".join(f"{option} {count}" for option, count in common)


def _method_and_bits(option: str) -> tuple[str, int]:
    method, _, bits = option.rpartition("-")
    return method, int(bits)
