"""What the command line shows: progress bars, tables, errors."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from qua2sedimo.choices import Choice
from qua2sedimo.comparison import Row
from qua2sedimo.errors import Stopped
from qua2sedimo.evaluation.metrics import METRICS, Estimate
from qua2sedimo.study import Progress as Report
from qua2sedimo.study import Study

console = Console()
errors = Console(stderr=True)


@contextmanager
def progress() -> Iterator[Report]:
    """A function (done, total, what) that shows one bar per kind of work."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(f"{what:<36}", total=total)
            bars.update(tasks[what], completed=done, total=total)

        try:
            yield report
        except KeyboardInterrupt:  # as an exception of ours it is not turned into «Aborted!» on the way up
            raise Stopped from None


#: Columns of the comparison, most telling first: those that do not fit are left to the report.
_COLUMNS = {
    "psnr": "PSNR\ndB ↑",
    "accuracy": "asked for\n% ↑",
    "features": "feature\ndistance ↓",
    "kernel_full": "kernel dist.\nto full ↓",
    "kernel_real": "kernel dist.\nto real ↓",
    "frechet_full": "Fréchet\nto full ↓",
    "frechet_real": "Fréchet\nto real ↓",
}


def size(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:.2f} GB"


def comparison_table(rows: Sequence[Row], width: int) -> Table:
    """Average bits, bytes and as many metrics with their intervals as fit ``width`` characters, best known first."""
    names = [m for m in _COLUMNS if m in rows[0].metrics]
    table = Table(
        title="Same fresh images for every row; ± is half the 95 % bootstrap interval",
        title_justify="left",
        title_style="dim",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("weights", no_wrap=True)
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    used = 2 + max(len(row.name) for row in rows) + 2 + 7 + 7
    shown = []
    for name in names:
        m = METRICS[name]
        cells = [_estimate(row.metrics[name], row.kind == "full" and m.kind == "paired") for row in rows]
        wide = max(len(cell) for cell in (*cells, *_COLUMNS[name].split("\n"))) + 2
        if used + wide > width:
            continue
        used += wide
        shown.append(cells)
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    for row, *cells in zip(rows, *shown):
        style = {"ours": "bold green", "full": "dim"}.get(row.kind)
        table.add_row(row.name, f"{row.average_bits:.2f}", f"{row.nbytes / 1e6:.2f}", *cells, style=style)
    return table


def _estimate(e: Estimate, same: bool) -> str:
    if same:
        return "same"
    half = (e.high - e.low) / 2
    digits = max(0, min(4, 1 - math.floor(math.log10(half)))) if half > 0 else 1
    return f"{e.value:.{digits}f} ±{half:.{digits}f}"


def candidates_table(choice: Choice, objective: str) -> Table:
    table = Table(title=f"Candidates for {choice.bits_asked:g} bits, measured", title_justify="left")
    for column in ("proposed by", "average bits", f"{objective} predicted", f"{objective} measured"):
        table.add_column(column, justify="left" if column == "proposed by" else "right")
    for c in choice.candidates:
        style = "bold green" if c.configuration == choice.configuration else None
        cells = f"{c.average_bits:.3f}", f"{c.predicted:.2f}", f"{c.measured[objective]:.2f}"
        table.add_row(c.origin, *cells, style=style)
    return table


def sensitivity_table(groups: dict[str, tuple[float, float, int]], by: str) -> Table:
    table = Table(title=f"Cost of going from 4 to 3 bits, by {by}", title_justify="left")
    table.add_column(by)
    table.add_column("layers", justify="right")
    table.add_column("score lost per layer", justify="right")
    table.add_column("")
    most = max((abs(cost) for cost, _, _ in groups.values()), default=1.0) or 1.0
    for name, (cost, spread, layers) in groups.items():
        bar = "█" * max(0, round(24 * cost / most))
        table.add_row(name, str(layers), f"{cost:.2f} ± {spread:.2f}", f"[cyan]{bar}[/cyan]")
    return table


def layer_table(study: Study, pattern: str = "*") -> Table:
    """The weight layers with operation, block, shape, share, and bytes under each option."""
    space, graph = study.space, study.graph
    options = space.union
    table = Table(title=f"{graph.denoiser}: {len(space.layers)} weight layers, {space.weights:,} weights")
    for column in ("layer", "operation", "block", "shape"):
        table.add_column(column, overflow="fold")
    table.add_column("share", justify="right")
    for option in options:
        table.add_column(str(option), justify="right")
    for name in space.layers:
        if not fnmatch.fnmatch(name, pattern):
            continue
        layer = graph.layers[name]
        sizes = [f"{o.nbytes(layer.shape):,}" if o in space.options[name] else "" for o in options]
        shape = "×".join(map(str, layer.shape))
        table.add_row(name, layer.operation, layer.block, shape, f"{100 * layer.weights / space.weights:.1f} %", *sizes)
    return table
