"""What a choice consists of: why each layer has its option, and how two choices differ."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table

from qua2sedimo.options import Option
from qua2sedimo.search import DECIDED, LayerReason
from qua2sedimo.study.choices import Choice, differences
from qua2sedimo.terminal.console import table


def reasons_table(reasons: Sequence[LayerReason], unit: str = "") -> Table:
    """For each layer its option, what changes with the next cheaper and the next better one, and what decided.

    Changes are in bytes and in ``unit``; without a unit they are scores.
    """
    of = f"bytes, {unit or 'score'}"
    changes = [Column(f"next {which}\n{of}", no_wrap=True) for which in ("cheaper", "better")]
    layer = Column("layer", overflow="fold")  # names are shown whole
    made = table(layer, Column("option", no_wrap=True), "bytes", *changes, Column("decided by"))
    for r in reasons:
        cheaper = _change(r.cheaper, -r.saved, -r.cost)
        better = _change(r.better, r.needs, r.gain)
        why = DECIDED[r.why] + (f", ×{len(r.tied) + 1}" if r.tied else "")
        made.add_row(r.layer, str(r.option or "16 bits"), f"{r.nbytes:,}", cheaper, better, why)
    return made


def _change(option: Option | None, nbytes: int, gain: float) -> str:
    return f"{option} {nbytes:+,} {gain:+.2g}" if option else ""


def difference_table(a: Choice, b: Choice, names: tuple[str, str]) -> Table:
    """Size and measured quality of both, then each layer whose option differs."""
    made = table("", *names)
    made.add_row("average bits", f"{a.average_bits:.4f}", f"{b.average_bits:.4f}")
    made.add_row("bytes", f"{a.nbytes:,}", f"{b.nbytes:,}")
    for metric in dict.fromkeys([*a.measured, *b.measured]):
        made.add_row(metric, *(f"{c.measured[metric]:.4g}" if metric in c.measured else "" for c in (a, b)))
    changed = differences(a.configuration, b.configuration)
    made.add_row("layers that differ", f"{len(changed)} of {len({*a.configuration, *b.configuration})}", "")
    for layer, one, other in changed:
        made.add_row(layer, str(one or "16 bits"), str(other or "16 bits"))
    return made
