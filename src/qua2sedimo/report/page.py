"""The report as one HTML file that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from qua2sedimo.formats.files import write_text
from qua2sedimo.report import charts
from qua2sedimo.report.costs import in_order, layer_costs
from qua2sedimo.report.data import LayerChoice, MetricInfo, ReportData, TableRow
from qua2sedimo.report.pictures import picture_cells
from qua2sedimo.report.render import vegalite_version
from qua2sedimo.report.tables import study_tables
from qua2sedimo.report.text import (
    count_text,
    digits_for,
    headline,
    interval,
    number,
    overlap,
    size_text,
    verdict,
)

#: Layers of one map: the reader switches between them.
_MAPS = ("sensitivity-map", "chosen-options")
_SCRIPTS = ("theme.js", "segments.js", "pictures.js", "layers.js", "graph.js", "downloads.js")


def write_report(data: ReportData, out: Path) -> Path:
    """Write the report to ``out``, whole or not at all; returns ``out``. Raises ``Qua2SeDiMoError``."""
    write_text(out, render_page(data))
    return out


def render_page(data: ReportData) -> str:
    """The page's HTML. Every text of ``data`` is escaped; nothing is fetched when the page is opened."""
    sensitivity = charts.sensitivity_figures(data, "container")
    figures = {
        "quality": charts.quality_figures(data, "container"),
        "maps": [figure for figure in sensitivity if figure.name in _MAPS],
        "sensitivity": [figure for figure in sensitivity if figure.name not in _MAPS],
        "predictor": charts.predictor_figures(data, "container"),
    }
    return _template().render(
        data=data,
        headline=headline(data),
        verdict=verdict(data),
        tiles=_tiles(data),
        metrics=_metric_columns(data),
        rows=_table_rows(data),
        pictures=list(zip(_picture_names(data), picture_cells(data.pictures, data.captions))),
        figures=figures,
        specifications={f.name: f.chart.to_dict() for group in figures.values() for f in group},
        findings=list(dict.fromkeys(data.findings)),
        layers=_layer_rows(data),
        choices_of=_choices_of(data),
        tables=study_tables(data),
        scripts=_SCRIPTS,
        size_text=size_text,
        library=_library(),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that leaves only ``window.vegaEmbed`` behind."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vegalite_version())
    return f"(function(){{{bundle}}})();"


def _tiles(data: ReportData) -> list[dict[str, str]]:
    times = data.full_bytes / data.ours_bytes if data.ours_bytes else math.inf
    full = next((row.bits for row in data.table if row.kind == "full"), None)
    tiles = [
        {
            "value": f"{data.ours_bits:.2f}",
            "label": "bits per weight",
            "note": f"asked for at most {data.budget_bits:g}",
        },
        {
            "value": size_text(data.ours_bytes),
            "label": "on disk",
            "note": f"full precision {size_text(data.full_bytes)}" + (f" at {full:g} bits" if full else ""),
        },
        {
            "value": f"{times:.1f}×",
            "label": "smaller",
            "note": f"{data.layers} layers, {count_text(data.weights)} weights",
        },
    ]
    info = data.objective_info
    ours = next(
        (row.metrics[info.name] for row in data.table if row.kind == "ours" and info.name in row.metrics),
        None,
    )
    if ours is not None:
        digits, unit = digits_for([ours]), f" {info.unit}" if info.unit else ""
        spread = interval(ours, digits)
        note = f"95 %: {spread}" if spread else ("higher is better" if info.higher_is_better else "lower is better")
        tiles.append({"value": number(ours.value, digits) + unit, "label": info.title, "note": note})
    return tiles


def _metric_columns(data: ReportData) -> list[dict[str, Any]]:
    columns = []
    for info in data.metric_infos:
        values = [row.metrics[info.name] for row in data.table if info.name in row.metrics]
        if values:
            columns.append({"info": info, "images": sorted({value.images for value in values})})
    return columns


def _table_rows(data: ReportData) -> list[dict[str, Any]]:
    largest = max((row.nbytes for row in data.table), default=1) or 1
    shown = []
    for row in data.table:
        cells = [_metric_cell(data, row, column["info"]) for column in _metric_columns(data)]
        times = data.full_bytes / row.nbytes if row.nbytes else math.inf
        shown.append(
            {
                "row": row,
                "cells": cells,
                "times": "" if row.kind == "full" else f"{times:.1f}× smaller",
                "share": 100 * row.nbytes / largest,
            }
        )
    return shown


def _metric_cell(data: ReportData, row: TableRow, info: MetricInfo) -> dict[str, Any]:
    """The value, its interval, and its mark: best of the quantized models, or not clearly worse."""
    if info.name not in row.metrics:
        return {"value": "–", "interval": "", "mark": ""}
    values = [r.metrics[info.name] for r in data.table if info.name in r.metrics]
    digits = digits_for(values)
    value = row.metrics[info.name]
    rivals = [r.metrics[info.name] for r in data.table if r.kind != "full" and info.name in r.metrics]
    rivals = [rival for rival in rivals if not math.isnan(rival.value)]
    mark = ""
    if row.kind != "full" and len(rivals) > 1 and not math.isnan(value.value):
        best = (max if info.higher_is_better else min)(rivals, key=lambda rival: rival.value)
        mark = "best" if value.value == best.value else "close" if overlap(value, best) else ""
    if row.kind == "full" and value.high <= value.low:
        return {"value": "same", "interval": "", "mark": ""}  # compared with itself
    return {"value": number(value.value, digits), "interval": interval(value, digits), "mark": mark}


def _picture_names(data: ReportData) -> list[dict[str, str]]:
    bits = {row.name: f"{row.bits:.2f} bits" for row in data.table}
    return [{"name": row.name, "note": bits.get(row.name, "")} for row in data.pictures]


def _layer_rows(data: ReportData) -> list[dict[str, Any]]:
    costs = {cost.layer: cost for cost in layer_costs(data.scores)}
    return [{"layer": choice, "cells": _layer_cells(choice, costs.get(choice.layer))} for choice in data.choices]


def _choices_of(data: ReportData) -> dict[str, list[str]]:
    """What the layer table can be filtered by, in the order of its columns from the second."""
    return {
        "operation": in_order(choice.operation for choice in data.choices),
        "block": in_order(choice.block for choice in data.choices),
        "option": sorted({choice.option for choice in data.choices}),
    }


def _layer_cells(choice: LayerChoice, cost: Any) -> list[dict[str, Any]]:
    """The numbers of a layer's row: what is read, and what it is sorted by."""
    dimensions = " × ".join(str(size) for size in choice.shape)
    return [
        {"text": f"{choice.average_bits:.2f}", "value": choice.average_bits, "title": ""},
        {
            "text": f"{cost.cost:#.2g}".rstrip(".").replace("-", "−") if cost else "–",
            "value": cost.cost if cost else -1e9,
            "title": f"{cost.better} → {cost.worse}, ± {cost.spread:.2g}" if cost else "too few options",
        },
        {"text": f"{choice.relative_mse:.2e}", "value": choice.relative_mse, "title": ""},
        {
            "text": number(choice.score, 2),
            "value": choice.score,
            "title": f"± {choice.spread:.2f} over the folds",
        },
        {"text": f"{choice.weights:,}", "value": choice.weights, "title": dimensions},
        {"text": f"{choice.nbytes:,}", "value": choice.nbytes, "title": ""},
    ]
