"""The report as one HTML file that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert

from qua2sedimo.formats.files import write_text
from qua2sedimo.formats.text import printable, size_text
from qua2sedimo.report.charts.figures import predictor_figures, quality_figures, sensitivity_figures
from qua2sedimo.report.charts.render import vegalite_version
from qua2sedimo.report.charts.style import in_order
from qua2sedimo.report.data import LayerChoice, MetricInfo, ReportData, TableRow
from qua2sedimo.report.page.cells import picture_cells
from qua2sedimo.report.page.sentences import WORDS, answers, headline, overlap
from qua2sedimo.report.page.tables import study_tables
from qua2sedimo.report.templates import template
from qua2sedimo.report.text import cell, count_text, decimals, digits_for, interval, number
from qua2sedimo.sensitivity.steps import Step

#: The two layers of one map: the reader switches between them.
_MAPS = ("sensitivity-map", "chosen-options")
_SCRIPTS = ("theme.js", "copy.js", "segments.js", "pictures.js", "sizes.js", "layers.js", "graph.js", "downloads.js")


def write_report(data: ReportData, out: Path) -> Path:
    """Write the report to ``out``, whole or not at all; returns ``out``. Raises ``Qua2SeDiMoError``."""
    write_text(out, printable(render_page(data)))
    return out


def render_page(data: ReportData) -> str:
    """The page's HTML. Every text of ``data`` is escaped; nothing is fetched when the page is opened."""
    sensitivity = sensitivity_figures(data, "container")
    figures = {
        "quality": quality_figures(data, "container"),
        "maps": [figure for figure in sensitivity if figure.name in _MAPS],
        "sensitivity": [figure for figure in sensitivity if figure.name not in _MAPS],
        "predictor": predictor_figures(data, "container"),
    }
    bits = {row.name: f"{row.bits:.2f} bits" for row in data.table}
    columns = _metric_columns(data)
    return template(__file__, "template.html.j2", True).render(
        data=data,
        headline=headline(data),
        answers=answers(data),
        tiles=_tiles(data),
        words=WORDS,
        metrics=columns,
        rows=_table_rows(data, [column["info"] for column in columns]),
        pictures=[
            (row.name, bits.get(row.name, ""), list(zip(data.captions, cells)))
            for row, cells in zip(data.pictures, picture_cells(data.pictures))
        ],
        figures=figures,
        specifications={f.name: f.chart.to_dict() for group in figures.values() for f in group},
        nearest_size=min(range(len(data.sizes)), key=lambda i: abs(data.sizes[i].bits - data.ours_bits), default=0),
        findings=list(dict.fromkeys(data.findings)),
        layers=_layer_rows(data),
        choices_of=_choices_of(data),
        tables=study_tables(data),
        scripts=_SCRIPTS,
        size_text=size_text,
        library=_library(),
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines only ``window.vegaEmbed``."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vegalite_version())
    return f"(function(){{{bundle}}})();"


def _tiles(data: ReportData) -> list[tuple[str, str, str]]:
    """The large numbers at the head: value, label, note."""
    times = data.full_bytes / data.ours_bytes if data.ours_bytes else math.inf
    full = next((f" at {row.bits:g} bits" for row in data.table if row.kind == "full"), "")
    tiles = [
        (f"{data.ours_bits:.2f}", "bits per weight", f"budget: at most {data.budget_bits:g}"),
        (size_text(data.ours_bytes), "on disk", f"full precision {size_text(data.full_bytes)}{full}"),
        (f"{times:.1f}×", "smaller", f"{data.layers} layers, {count_text(data.weights)} weights"),
    ]
    info = data.objective
    ours = next((row.metrics.get(info.name) for row in data.table if row.kind == "ours"), None)
    if ours is not None:
        digits, unit = digits_for([ours]), f" {info.unit}" if info.unit else ""
        spread = interval(ours, digits)
        note = f"95 %: {spread}" if spread else ("higher is better" if info.higher_is_better else "lower is better")
        tiles.append((number(ours.value, digits) + unit, info.title, note))
    return tiles


def _metric_columns(data: ReportData) -> list[dict[str, Any]]:
    columns = []
    for info in data.metric_infos:
        values = [row.metrics[info.name] for row in data.table if info.name in row.metrics]
        if values:
            columns.append({"info": info, "images": sorted({value.images for value in values})})
    return columns


def _table_rows(data: ReportData, infos: list[MetricInfo]) -> list[dict[str, Any]]:
    largest = max((row.nbytes for row in data.table), default=1) or 1
    return [
        {
            "row": row,
            "cells": [_metric_cell(data, row, info) for info in infos],
            "times": "" if row.kind == "full" else f"{data.full_bytes / (row.nbytes or math.nan):.1f}× smaller",
            "share": 100 * row.nbytes / largest,
        }
        for row in data.table
    ]


def _metric_cell(data: ReportData, row: TableRow, info: MetricInfo) -> dict[str, str]:
    """The value, its interval, and its mark: best of the quantized models, or not clearly different from it."""
    measured = {r.name: (r.kind, r.metrics[info.name]) for r in data.table if info.name in r.metrics}
    rivals = [value for kind, value in measured.values() if kind != "full" and not math.isnan(value.value)]
    mark = ""
    if row.name in measured and row.kind != "full" and len(rivals) > 1:
        value = measured[row.name][1]
        best = (max if info.higher_is_better else min)(rivals, key=lambda rival: rival.value)
        mark = "best" if value.value == best.value else "close" if overlap(value, best) else ""
    text, spread = cell(row, info, digits_for(value for _, value in measured.values()))
    return {"value": text, "interval": spread, "mark": mark}


def _layer_rows(data: ReportData) -> list[dict[str, Any]]:
    steps = {s.layer.name: s.step for s in data.steps}
    return [{"layer": choice, "cells": _layer_cells(choice, steps.get(choice.layer))} for choice in data.choices]


def _choices_of(data: ReportData) -> dict[str, list[str]]:
    """What the layer table can be filtered by, in the order of its columns from the second."""
    return {
        "operation": in_order(choice.operation for choice in data.choices),
        "block": in_order(choice.block for choice in data.choices),
        "option": sorted({choice.option for choice in data.choices}),
    }


def _layer_cells(choice: LayerChoice, step: Step | None) -> list[tuple[str, float, str]]:
    """The numbers of a layer's row: their text, what they are sorted by, and a remark."""
    cost: tuple[str, float, str] = ("–", -1e9, "too few options")
    if step is not None:
        folds = f", ± {step.spread:.2g}" if math.isfinite(step.spread) else ""
        cost = number(step.cost, decimals(step.cost)), step.cost, f"{step.better} → {step.worse}{folds}"
    score = f"± {choice.score_spread:.2f} over the folds" if math.isfinite(choice.score_spread) else ""
    return [
        (f"{choice.average_bits:.2f}", choice.average_bits, ""),
        cost,
        (f"{choice.relative_mse:.2e}", choice.relative_mse, ""),
        (number(choice.score, 2), choice.score, score),
        (f"{choice.weights:,}", choice.weights, " × ".join(str(size) for size in choice.shape)),
        (f"{choice.nbytes:,}", choice.nbytes, ""),
    ]
