"""Tables of choosing and searching, as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from qua2sedimo.options import Option
from qua2sedimo.search import DECIDED, LayerReason
from qua2sedimo.study.choices import Choice, differences
from qua2sedimo.study.stages.frontier import Point
from qua2sedimo.study.stages.search import Found


def reasons_table(reasons: Sequence[LayerReason], unit: str = "") -> Table:
    """Per layer: its option, what changes with the next cheaper and with the next better one, in bytes and in
    ``unit``, and what decided."""
    of = f"bytes, {unit or 'score'}"
    table = _table("layer", "option", "bytes", f"next cheaper\n{of}", f"next better\n{of}", "decided by")
    table.columns[0].overflow = "fold"  # names are told whole
    for column in table.columns[1:-1]:
        column.no_wrap = True
    for r in reasons:
        cheaper = _change(r.cheaper, -r.saved, -r.cost)
        better = _change(r.better, r.needs, r.gain)
        why = DECIDED[r.why] + (f", ×{len(r.tied) + 1}" if r.tied else "")
        table.add_row(r.layer, str(r.option or "16 bits"), f"{r.nbytes:,}", cheaper, better, why)
    return table


def _change(option: Option | None, nbytes: int, gain: float) -> str:
    return f"{option} {nbytes:+,} {gain:+.2g}" if option else ""


def difference_table(a: Choice, b: Choice, names: tuple[str, str]) -> Table:
    """Size and measured quality of both, then each layer whose option differs."""
    table = _table("", *names)
    table.add_row("average bits", f"{a.average_bits:.4f}", f"{b.average_bits:.4f}")
    table.add_row("bytes", f"{a.nbytes:,}", f"{b.nbytes:,}")
    for metric in dict.fromkeys([*a.measured, *b.measured]):
        table.add_row(metric, *(f"{c.measured[metric]:.4g}" if metric in c.measured else "" for c in (a, b)))
    changed = differences(a.configuration, b.configuration)
    table.add_row("layers that differ", f"{len(changed)} of {len({*a.configuration, *b.configuration})}", "")
    for layer, one, other in changed:
        table.add_row(layer, str(one or "16 bits"), str(other or "16 bits"))
    return table


def rounds_table(found: Found, objective: str) -> Table:
    """What each round of a search left."""
    table = _table("round", "images", f"best {objective} on few images", "expected gain", "noise")
    for r in found.rounds:
        table.add_row(str(r.number), str(r.spent), f"{r.best:.2f}", f"{r.expected_gain:.2f}", f"{r.noise:.2f}")
    return table


def frontier_table(points: Sequence[Point], objective: str) -> Table:
    """All points by size; those on the frontier are marked."""
    table = _table("point", "bits", "MB", objective, "95 % interval", "on the frontier")
    for p in points:
        q = p.quality
        table.add_row(
            p.name, f"{p.average_bits:.3f}", f"{p.nbytes / 1e6:.3f}", f"{q.value:.2f}", f"{q.low:.2f} to {q.high:.2f}",
            "yes" if p.efficient else "", style="bold green" if p.efficient else "dim",
        )  # fmt: skip
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table
