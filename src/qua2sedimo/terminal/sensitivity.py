"""What a bit costs, by group of layers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from qua2sedimo.sensitivity import Distribution, ExpectedOfGroup, GroupShares, Source, agreements
from qua2sedimo.terminal.console import table


def sensitivity_table(groups: Sequence[Distribution], by: str, unit: str, most: int = 12) -> Table:
    """What groups lose from 4 to 3 bits, the most sensitive first: 80 columns, at most ``most`` rows."""
    low, high = min((g.low for g in groups), default=0.0), max((g.high for g in groups), default=1.0)
    made = table(
        Column(by, no_wrap=True, overflow="ellipsis", max_width=22),
        "layers",
        "median",
        "± folds",
        Column(f"{low:.2g} to {high:.2g}: range ─ quartiles ━", no_wrap=True),
        title=f"Cost of 4 → 3 bits by {by}, {unit or 'in units of the objective'} a layer",
    )
    for group in groups[:most]:
        cells = str(group.count), f"{group.median:.3g}", f"{group.spread:.2g}"
        made.add_row(Text(group.name), *cells, Text(_strip(group, low, high), style="cyan"))
    if len(groups) > most:
        made.caption = f"{len(groups) - most} more in sensitivity-groups.csv"
    return made


def sources_table(known: Sequence[Source], groups: Sequence[GroupShares], by: str, most: int = 12) -> Table:
    """What each source says of groups of layers, side by side, and how far sources agree on the order of layers."""
    made = table(
        Column(by, no_wrap=True, overflow="ellipsis", max_width=22),
        "layers",
        *(f"by {source.name}" for source in known),
        title=f"Cost at about 3 bits by {by}, as a share of all layers', from each source",
    )
    for group in groups[:most]:
        shares = ("–" if share is None else f"{100 * share:.2g} %" for share in group.shares)
        made.add_row(Text(group.name), str(group.layers), *shares)
    said = [
        f"{a.first} and {a.second}: {a.correlation.value:.2f} [{a.correlation.low:.2f}, {a.correlation.high:.2f}] over "
        f"{a.correlation.images} layers"
        for a in agreements(known)
    ]
    if said:
        made.caption = "Rank correlation of layers: " + "; ".join(said)
    return made


def expected_table(groups: Sequence[ExpectedOfGroup], by: str, source: str, most: int = 12) -> Table:
    """Where damage is expected from ``source``, most for each weight first: 80 columns, at most ``most`` rows."""
    made = table(
        Column(by, no_wrap=True, overflow="ellipsis", max_width=22),
        "layers",
        "weights",
        "damage",
        "per weight",
        "early",
        "middle",
        "late",
        title=f"Expected damage at about 3 bits by {by} (from {source}), and by third of the sampling steps",
    )
    for group in groups[:most]:
        shares = (f"{100 * share:.0f} %" for share in group.thirds)
        sizes = f"{100 * group.weights:.2g} %", f"{100 * group.share:.2g} %", f"{group.per_weight:.2g} ×"
        made.add_row(Text(group.name), str(group.layers), *sizes, *shares)
    if len(groups) > most:
        made.caption = f"{len(groups) - most} more in sensitivity-expected.csv"
    return made


def _strip(group: Distribution, low: float, high: float, width: int = 30) -> str:
    """A box plot in one line: ``──━━━●━──``."""

    def place(value: float) -> int:
        return round((width - 1) * (value - low) / (high - low)) if high > low else 0

    cells = [" "] * width
    for i in range(place(group.low), place(group.high) + 1):
        cells[i] = "━" if place(group.q1) <= i <= place(group.q3) else "─"
    cells[place(group.median)] = "●"
    return "".join(cells)
