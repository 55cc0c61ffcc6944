"""The table of the comparison: full precision, uniform quantization and ours on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from qua2sedimo.metrics.catalogue import metric
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.study.stages.compare import Row
from qua2sedimo.terminal.console import table

#: Heads of columns, most telling first: metrics that do not fit are left to the report.
_COLUMNS = {
    "psnr": "PSNR\ndB ↑",
    "accuracy": "asked for\n% ↑",
    "features": "feature\ndistance ↓",
    "kernel_full": "kernel dist.\nto full ↓",
    "kernel_real": "kernel dist.\nto real ↓",
    "frechet_full": "Fréchet\nto full ↓",
    "frechet_real": "Fréchet\nto real ↓",
}
_STYLES = {"ours": "bold green", "full": "dim"}


def comparison_table(rows: Sequence[Row], width: int) -> Table:
    """Average bits, megabytes and as many metrics with their intervals as fit ``width`` characters, best known first.

    A metric of other weights, such as ``clip_score:FOLDER``, has a column like any other.
    """
    known = list(_COLUMNS)
    metrics = [metric(name) for name in rows[0].metrics]
    metrics.sort(key=lambda m: known.index(m.name) if m.name in known else len(known))
    title = "Same fresh images for every row; ± is half the 95 % bootstrap interval"
    made = table("weights", "bits", "MB", title=title, title_style="dim", collapse_padding=True)
    fixed = [(row.name, f"{row.average_bits:.2f}", f"{row.nbytes / 1e6:.2f}") for row in rows]
    used = sum(2 + max(map(len, column)) for column in zip(("weights", "bits", "MB"), *fixed))
    shown = []
    for m in metrics:
        head = _COLUMNS.get(m.name, f"{m.title}\n{m.unit} {'↑' if m.higher_is_better else '↓'}")
        cells = [_estimate(row.metrics[m.name], row.kind == "full" and m.kind == "paired") for row in rows]
        wide = max(len(cell) for cell in (*cells, *head.split("\n"))) + 2
        if used + wide > width:
            continue
        used += wide
        shown.append(cells)
        made.add_column(head, justify="right", no_wrap=True)
    for row, texts, *cells in zip(rows, fixed, *shown):
        made.add_row(*texts, *cells, style=_STYLES.get(row.kind))
    return made


def _estimate(e: Estimate, same: bool) -> str:
    """The value with half its interval, to as many digits as the interval leaves certain."""
    if same:
        return "same"
    half = (e.high - e.low) / 2
    if not math.isfinite(half):  # of one image there is no interval
        return f"{e.value:.2f}"
    digits = max(0, min(4, 1 - math.floor(math.log10(half)))) if half > 0 else 1
    return f"{e.value:.{digits}f} ±{half:.{digits}f}"
