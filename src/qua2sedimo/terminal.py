"""What the command line shows: progress bars, tables, errors."""

from __future__ import annotations

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
from rich.text import Text

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Stopped
from qua2sedimo.inspection import Inspection
from qua2sedimo.metrics.catalogue import metric
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.objective import Objective
from qua2sedimo.sensitivity import Distribution
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.compare import Row
from qua2sedimo.system.progress import Progress as Report
from qua2sedimo.system.progress import without_note

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
    # One configuration can take minutes: the time left is told from the last hour's, not from the last half minute's.
    with Progress(*columns, console=console, speed_estimate_period=3600) as bars:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, what: str) -> None:
            kind, description = without_note(what), f"{what:<36}"
            if kind not in tasks:
                tasks[kind] = bars.add_task(description, total=total)
            bars.update(tasks[kind], completed=done, total=total, description=description)

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
    """Average bits, bytes and as many metrics with their intervals as fit ``width`` characters, best known first.

    A metric of other weights, such as ``clip_score:FOLDER``, has a column like any other.
    """
    known = list(_COLUMNS)
    metrics = [metric(name) for name in rows[0].metrics]
    metrics.sort(key=lambda m: known.index(m.name) if m.name in known else len(known))
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
    for m in metrics:
        head = _COLUMNS.get(m.name, f"{m.title}\n{m.unit} {'↑' if m.higher_is_better else '↓'}")
        cells = [_estimate(row.metrics[m.name], row.kind == "full" and m.kind == "paired") for row in rows]
        wide = max(len(cell) for cell in (*cells, *head.split("\n"))) + 2
        if used + wide > width:
            continue
        used += wide
        shown.append(cells)
        table.add_column(head, justify="right", no_wrap=True)
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


def candidates_table(choice: Choice, objective: Objective) -> Table:
    table = Table(title=f"Candidates for {choice.bits_asked:g} bits, measured", title_justify="left")
    for column in ("proposed by", "average bits", f"{objective.text} predicted", f"{objective.text} measured"):
        table.add_column(column, justify="left" if column == "proposed by" else "right")
    for c in choice.candidates:
        style = "bold green" if c.configuration == choice.configuration else None
        cells = (
            f"{c.average_bits:.3f}",
            f"{c.predicted:.2f}",
            f"{objective.of(c.measured, c.average_bits, c.configuration):.2f}",
        )
        table.add_row(c.origin, *cells, style=style)
    if choice.p_value is not None:
        table.caption = f"the best against the second, on the same images: p = {choice.p_value:.3f}"
        table.caption_justify = "left"
    return table


def sensitivity_table(groups: Sequence[Distribution], by: str, unit: str, most: int = 12) -> Table:
    """What 4 → 3 bits costs by group, dearest first: 80 columns, at most ``most`` rows."""
    table = Table(
        title=f"Cost of 4 → 3 bits by {by}, {unit or 'in units of the objective'} a layer",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column(by, no_wrap=True, overflow="ellipsis", max_width=22)
    for column in ("layers", "median", "± folds"):
        table.add_column(column, justify="right", no_wrap=True)
    low, high = min((g.low for g in groups), default=0.0), max((g.high for g in groups), default=1.0)
    table.add_column(f"{low:.2g} to {high:.2g}: range ─ quartiles ━", no_wrap=True)
    for group in groups[:most]:
        cells = str(group.count), f"{group.median:.3g}", f"{group.spread:.2g}"
        table.add_row(Text(group.name), *cells, Text(_strip(group, low, high), style="cyan"))
    if len(groups) > most:
        table.caption = f"{len(groups) - most} more in sensitivity.csv"
    return table


def _strip(group: Distribution, low: float, high: float, width: int = 30) -> str:
    """A box plot in one line: ``──━━━●━──``."""

    def place(value: float) -> int:
        return round((width - 1) * (value - low) / (high - low)) if high > low else 0

    cells = [" "] * width
    for i in range(place(group.low), place(group.high) + 1):
        cells[i] = "━" if place(group.q1) <= i <= place(group.q3) else "─"
    cells[place(group.median)] = "●"
    return "".join(cells)


def layer_tree(inspection: Inspection, pattern: str, width: int) -> Table:
    """Blocks, and in each its layers and parts: operation, shape, weights, share, bytes under each option that fits."""
    space = inspection.space
    units = inspection.matching(pattern)
    blocks: dict[str, list[WeightLayer]] = {}
    for unit in units:
        blocks.setdefault(unit.block, []).append(unit)
    table = Table(
        title=f"{inspection.graph.denoiser}: {len(inspection.layers)} weight layers, {inspection.weights:,} weights",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    every = inspection.graph.layers.values()
    prefix = {block: _common_path([unit.module for unit in every if unit.block == block]) for block in blocks}
    longest = max(len(unit.name) - len(prefix[unit.block]) + len(_copies(unit)) for unit in units)
    fitting = max(1, (width - longest - 54) // 11)
    shown = space.union[:fitting]
    for column in ("block, layer", "operation", "shape"):
        table.add_column(column, overflow="fold")
    for column in ("weights", "share", *(str(option).replace("-", "\n") for option in shown)):
        table.add_column(column, justify="right", no_wrap=True)
    for block, members in blocks.items():
        weights = sum(unit.weights for unit in members)
        parts = sum(unit.span is not None for unit in members)
        what = f"{len(members)} units" + (f", {parts} parts" if parts else "")
        totals = [sum(option.nbytes(unit.shape) for unit in members) for option in shown]
        table.add_row(
            Text(f"{block}  {prefix[block]}"), "", what, *_amounts(weights, space.weights, totals), style="bold"
        )
        for unit in members:
            sizes = [option.nbytes(unit.shape) if option in space.options[unit.name] else None for option in shown]
            cells = _amounts(unit.weights, space.weights, sizes)
            shape = "×".join(map(str, unit.shape))
            table.add_row(Text(f"  {unit.name[len(prefix[block]) :]}{_copies(unit)}"), unit.operation, shape, *cells)
    if len(shown) < len(space.union):
        table.caption = f"{len(space.union) - len(shown)} more options do not fit here: --json has all, --set chooses."
    return table


def _copies(unit: WeightLayer) -> str:
    return f" (and {len(unit.copies)} copies)" if unit.copies else ""


def _common_path(names: Sequence[str]) -> str:
    """The modules that all names lie in, with the last dot: ``transformer_blocks.3.``."""
    first, *_ = paths = [name.split(".")[:-1] for name in names]
    depth = next((i for i in range(len(first)) if len({tuple(p[: i + 1]) for p in paths}) > 1), len(first))
    return "".join(f"{part}." for part in first[:depth]) if len(names) > 1 else ""


def _amounts(weights: int, total: int, sizes: Sequence[int | None]) -> list[str]:
    cells = ["" if nbytes is None else short(nbytes) for nbytes in sizes]
    return [f"{weights:,}", f"{100 * weights / total:.1f} %", *cells]


def short(nbytes: float) -> str:
    """Bytes in at most five characters: 640, 1.2k, 590k, 3.1M."""
    for unit in ("", "k", "M"):
        if nbytes < 1000:
            return f"{nbytes:.0f}{unit}" if nbytes >= 10 or not unit else f"{nbytes:.1f}{unit}"
        nbytes /= 1000
    return f"{nbytes:.2f}G"


def inspection_notes(inspection: Inspection) -> Iterator[str]:
    """Totals, and what is left alone, shared, or may be."""
    space, graph = inspection.space, inspection.graph
    low, high = space.byte_range()
    parts = sum(unit.span is not None for unit in graph.layers.values())
    yield (
        f"16 bits: {size(2 * space.weights)}; these options reach {8 * low / space.weights:.2f} to "
        f"{8 * high / space.weights:.2f} average bits ({size(low)} to {size(high)})."
    )
    yield (
        f"Graph: {len(graph.nodes)} nodes, {len(graph.edges)} edges; {len(graph.layers)} units, {parts} of them parts "
        f"of layers that read a concatenation. Inputs: {inspection.inputs}."
    )
    if not inspection.values:
        yield "Architecture only: no weights were read."
    for name in graph.bypassed:
        yield f"left alone: {name} (its module is never called, or does not reach the output)"
    for group in graph.tied_candidates:
        yield f"may hold the same weights in {len(group)} blocks: {group[0]} … (their values will tell)"
    if inspection.others:
        yield f"further denoisers of this pipeline: {', '.join(inspection.others)} (--component)"
