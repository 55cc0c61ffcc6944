"""Stacked bars: which options the layers of each operation got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt

from qua2sedimo.report.costs import in_order
from qua2sedimo.report.data import LayerChoice
from qua2sedimo.report.style import finish, is_dark, option_shade, short_option


def options_by_operation(choices: Sequence[LayerChoice], width: Any = 720) -> Any:
    """For each operation a bar of its layers, in one piece for each option."""
    operations = in_order(choice.operation for choice in choices)
    options = sorted({choice.option for choice in choices}, key=_method_and_bits)
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
    y = alt.Y(
        "operation:N", title=None, scale=alt.Scale(domain=operations, paddingInner=0.28), axis=alt.Axis(ticks=False)
    )
    x = alt.X("from:Q", title="share of the operation's layers", axis=alt.Axis(format="%", tickCount=5))
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("operation", "option")]
    tooltip += [alt.Tooltip("layers:Q"), alt.Tooltip("of:Q", title="of the layers")]
    colours = alt.Scale(domain=options, range=[option_shade(option) for option in options])
    bars = base.mark_bar(stroke="#808894", strokeOpacity=0.35, strokeWidth=0.75).encode(
        x=x, x2="to:Q", color=alt.Color("option:N", title=None, scale=colours), tooltip=tooltip
    )
    ink = alt.condition("datum.dark", alt.value("#ffffff"), alt.value("#20252b"))
    text = base.mark_text(fontSize=11).encode(x="middle:Q", text="text:N", color=ink)
    common = ", ".join(f"{option} {count}" for option, count in Counter(c.option for c in choices).most_common(5))
    return finish(
        alt.layer(bars, text).properties(width=width, height=max(80, 25 * len(operations))),
        f"Stacked bars of the options chosen for each operation's layers. Most often: {common}.",
    )


def _method_and_bits(option: str) -> tuple[str, int]:
    method, _, bits = option.rpartition("-")
    return method, int(bits)
