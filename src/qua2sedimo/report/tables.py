"""The report's numbers as tables, which the page reads, and gives away as JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from qua2sedimo.report.costs import layer_costs
from qua2sedimo.report.data import ReportData

Table = dict[str, list[Any]]


def study_tables(data: ReportData) -> dict[str, Any]:
    """Tables as ``{"columns": [...], "rows": [[...], ...]}``, the graph, and what the report is about.

    The first column of ``options`` is a row number of ``layers``. What is not a finite number is None.
    """
    return {
        "about": {
            "title": data.title,
            "model": data.model,
            "pipeline": data.pipeline,
            "budget_bits": data.budget_bits,
            "bits": plain(data.ours_bits),
            "bytes": data.ours_bytes,
            "full_bytes": data.full_bytes,
            "objective": data.objective,
            "cost_unit": data.cost_unit,
            "provenance": data.provenance,
            "commands": data.commands,
            "settings": data.settings,
            "findings": data.findings,
        },
        "models": _models(data),
        "layers": _layers(data),
        "options": _options(data),
        "measurements": _table(
            ["kind", "name", "average_bits", "value", "low", "high"],
            ([p.kind, p.label, p.bits, p.value, p.low, p.high] for p in data.points),
        ),
        "unseen": _table(
            ["predicted", "measured"],
            zip(data.predictor.predicted, data.predictor.measured) if data.predictor else (),
        ),
        "graph": _table(["name", "kind", "block", "inputs"], ([n.name, n.kind, n.block, n.inputs] for n in data.nodes)),
    }


def _models(data: ReportData) -> Table:
    names = [info.name for info in data.metric_infos]
    columns = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    rows: list[list[Any]] = []
    for row in data.table:
        found = [row.metrics.get(name) for name in names]
        values = [
            number for value in found for number in ((value.value, value.low, value.high) if value else (None,) * 3)
        ]
        rows.append([row.name, row.kind, row.bits, row.nbytes, *values])
    return _table(["name", "kind", "average_bits", "bytes", *columns], rows)


def _layers(data: ReportData) -> Table:
    costs = {cost.layer: cost for cost in layer_costs(data.scores)}
    columns = ["layer", "operation", "block", "shape", "weights", "option", "bytes", "average_bits", "relative_mse",
               "score", "score_spread", "bit_cost", "bit_cost_spread", "decided", "reason"]  # fmt: skip
    rows = []
    for c in data.choices:
        cost = costs.get(c.layer)
        lost = [cost.cost, cost.spread] if cost else [None, None]
        shape = "x".join(map(str, c.shape))
        rows.append([c.layer, c.operation, c.block, shape, c.weights, c.option, c.nbytes, c.average_bits,
                     c.relative_mse, c.score, c.spread, *lost, c.decided, c.reason])  # fmt: skip
    return _table(columns, rows)


def _options(data: ReportData) -> Table:
    number = {choice.layer: i for i, choice in enumerate(data.choices)}
    columns = [
        "layer",
        "option",
        "average_bits",
        "bytes",
        "relative_mse",
        "score",
        "score_spread",
        "cost",
        "cost_spread",
    ]
    return _table(
        columns,
        ([number[s.layer], s.option, s.average_bits, s.nbytes, s.relative_mse, s.score, s.spread, s.cost, s.cost_spread]
         for s in data.scores if s.layer in number),
    )  # fmt: skip


def _table(columns: list[str], rows: Iterable[Sequence[Any]]) -> Table:
    return {"columns": columns, "rows": [[plain(value) for value in row] for row in rows]}


def plain(value: Any) -> Any:
    """A value as JSON takes it: five digits of a number, None for what is none."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
