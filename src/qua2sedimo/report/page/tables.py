"""The report's numbers as tables: the page reads them, and offers them as JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from qua2sedimo.formats.text import size_text
from qua2sedimo.report.data import ReportData
from qua2sedimo.sensitivity import THIRDS

Table = dict[str, list[Any]]
#: Of an option and a chosen option, as attributes of its row.
_OPTION = ["option", "average_bits", "nbytes", "relative_mse", "score", "score_spread", "cost", "cost_spread"]
_LAYER = ["layer", "operation", "block", "shape", "weights", "option", "nbytes", "average_bits", "relative_mse",
          "score", "score_spread"]  # fmt: skip


def study_tables(data: ReportData) -> dict[str, Any]:
    """Tables as ``{"columns": [...], "rows": [[...], ...]}``, the graph, and what the report is about.

    The first column of ``options`` is a row number of ``layers``. Values that are not finite are None.
    """
    about = ["title", "model", "pipeline", "budget_bits", "full_bytes", "cost_unit", "provenance", "commands",
             "settings", "findings"]  # fmt: skip
    number = {choice.layer: i for i, choice in enumerate(data.choices)}
    lost = {s.layer.name: [s.step.cost, s.step.spread] for s in data.steps}
    quality = data.predictor
    return {
        "about": {
            **{name: plain(getattr(data, name)) for name in about},
            "bits": plain(data.ours_bits),
            "bytes": data.ours_bytes,
            "objective": data.objective.name,
        },
        "models": _models(data),
        "layers": _table(
            [*_LAYER, "bit_cost", "bit_cost_spread", "decided", "reason"],
            ([*map({**vars(c), "shape": "x".join(map(str, c.shape))}.get, _LAYER),
              *lost.get(c.layer, [None, None]), c.decided, c.reason] for c in data.choices),
        ),
        "options": _table(
            ["layer", *_OPTION],
            ([number[o.layer], *(getattr(o, name) for name in _OPTION)] for o in data.options if o.layer in number),
        ),
        "measurements": _table(
            ["kind", "name", "average_bits", "value", "low", "high"],
            ([p.kind, p.label, p.bits, p.quality.value, p.quality.low, p.quality.high] for p in data.points),
        ),
        "sizes": _table(
            ["average_bits", "size", "change", *(operations := list(data.sizes[0].operations) if data.sizes else [])],
            ([s.bits, size_text(s.nbytes), s.change, *(s.operations[o] for o in operations)] for s in data.sizes),
        ),
        "expected": _table(
            ["layer", "option", "share", *THIRDS],
            ([e.layer.name, str(e.option), e.share, *e.thirds] for e in data.expected),
        ),
        "unseen": _table(["predicted", "measured"], quality.pairs if quality else []),
        "graph": _table(["name", "kind", "block", "inputs"], ([n.name, n.kind, n.block, n.inputs] for n in data.nodes)),
    }  # fmt: skip


def _models(data: ReportData) -> Table:
    names = [info.name for info in data.metric_infos]
    columns = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    rows: list[list[Any]] = []
    for row in data.table:
        found = [row.metrics.get(name) for name in names]
        values = [end for e in found for end in ((e.value, e.low, e.high) if e else (None,) * 3)]
        rows.append([row.name, row.kind, row.bits, row.nbytes, *values])
    return _table(["name", "kind", "average_bits", "bytes", *columns], rows)


def _table(columns: list[str], rows: Iterable[Sequence[Any]]) -> Table:
    return {
        "columns": ["bytes" if name == "nbytes" else name for name in columns],
        "rows": [[plain(value) for value in row] for row in rows],
    }


def plain(value: Any) -> Any:
    """A value for JSON: five digits of a number, None for one that is not finite."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
