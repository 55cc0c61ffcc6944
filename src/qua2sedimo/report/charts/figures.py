"""The figures of a report, each with its title and the sentences that say how to read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qua2sedimo.report.charts import boxes, maps
from qua2sedimo.report.charts.bars import options_by_operation
from qua2sedimo.report.charts.picture_grid import FEW, MOST, numbered, picture_grid
from qua2sedimo.report.charts.quality import axis_title, counted, quality_against_bits
from qua2sedimo.report.charts.style import option_key, uneven
from qua2sedimo.report.charts.thirds import damage_by_step
from qua2sedimo.report.charts.trust import predicted_against_measured, predictor_quality
from qua2sedimo.report.data import ReportData
from qua2sedimo.sensitivity.tables import LayerStep

Width = Any  # pixels, or "container" for as wide as the page allows

#: Sentences that several captions share.
LUCK = "The best of many measurements is partly luck: two marks differ clearly only if their intervals do not overlap."
SIZES = "Bits per weight count everything that is stored: also every scale, zero point and codebook."
COST = "The expected loss when a layer{of} goes from about 4 to about 3 bits, in {unit}; other layers stay the same."
BOXES = (
    "A box spans the middle half of the layers, the line in it is the median, whiskers reach the furthest layer within "
    "1.5 box lengths; one or two layers are marks without a box."
)
_LABELLED = 520  # pixels that the labels of marks need


@dataclass(frozen=True, eq=False)
class Figure:
    """A chart with its file name, title, and the sentences that say how to read it.

    ``half``: narrow enough to stand beside another on a wide screen. ``least``: pixels it needs to be readable.
    """

    name: str
    title: str
    text: str
    chart: Any
    half: bool = False
    least: int = 0


def all_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """Every figure for which the report has data, in the order of the page."""
    pictures = picture_figures(data, width if isinstance(width, int) else 720)
    return pictures + quality_figures(data, width) + sensitivity_figures(data, width) + predictor_figures(data, width)


def picture_figures(data: ReportData, width: int = 720) -> list[Figure]:
    """The same pictures by each model, if there are at least two models."""
    if len(data.pictures) < 2:
        return []
    shown = data.captions[:MOST]
    first = f"The first {len(shown)} of {len(data.captions)} pictures" if len(data.captions) > MOST else "Pictures"
    text = f"{first} by each model. A column has one prompt and one noise; only weights differ: {numbered(shown)}."
    chart = picture_grid(data, width)
    return [Figure("pictures", "The same pictures, by each model", text, chart, half=len(shown) <= FEW)]


def quality_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """Quality against average bits, of all measured configurations."""
    if not any(math.isfinite(point.quality.value) and point.kind != "full" for point in data.points):
        return []
    budget = f"The dashed line is the budget of {data.budget_bits:g} bits. " if math.isfinite(data.budget_bits) else ""
    text = (
        f"Each mark is one measured configuration, a choice of an option for every layer: {counted(data.points)}. "
        "Vertical lines are 95 % intervals, within which the mean over very many pictures probably lies. The stepped "
        f"line is the Pareto frontier, the best measured at each size. {budget}{_luckier(data)}{LUCK} {SIZES}"
    )
    chart = quality_against_bits(data.points, data.objective, width, data.budget_bits)
    return [Figure("quality-against-bits", f"{data.objective.title} against size", text, chart, least=_LABELLED)]


def _luckier(data: ReportData) -> str:
    """Why marks that look better than ours, at no larger size, were not chosen."""
    ours = next((point for point in data.points if point.kind == "ours"), None)
    if ours is None:
        return ""
    sign = 1 if data.objective.higher_is_better else -1
    above = [
        point for point in data.points
        if point.kind in ("candidate", "frontier") and point.bits <= ours.bits + 0.005
        and sign * point.quality.value > sign * ours.quality.value
    ]  # fmt: skip
    if not above:
        return ""
    images, fresh = (max(point.quality.images for point in points) for points in (above, [ours]))
    which = "1 candidate looks" if len(above) == 1 else f"{len(above)} candidates look"
    return (
        f"{which} better than ours: they were measured on at most {images} pictures and compared with many others, so "
        "that luck is in them; ours is the one that did best on further pictures, and was then measured on "
        f"{fresh} new ones. "
    )


def sensitivity_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """Where going down a bit hurts, and what was chosen there."""
    unit, square_roots = data.cost_unit, roots(data.steps)
    blocks = {s.layer.block for s in data.steps}
    cost = Figure(
        "sensitivity-map",
        "Sensitivity map",
        f"{COST.format(of='', unit=unit or 'score')} A cell is the mean over its layers.{square_roots}",
        data.steps and maps.sensitivity_map(data.steps, unit, width),
        least=maps.least_width(blocks),
    )
    chosen = Figure(
        "chosen-options",
        "What was chosen",
        f"Average bits per weight of each cell, and its option, or the number of different ones (2×). {option_key()}",
        data.choices and maps.choice_map(data.choices, width),
        least=maps.least_width(choice.block for choice in data.choices),
    )
    operations = Figure(
        "sensitivity-by-operation",
        "Sensitivity by operation",
        f"One mark for each layer, the most sensitive operation first. {BOXES}{square_roots}",
        data.steps and boxes.sensitivity_by_operation(data.steps, width, unit),
    )
    depth = Figure(
        "sensitivity-by-block",
        "Sensitivity by block",
        f"The same costs along the network's depth. {BOXES}{square_roots}",
        data.steps and boxes.sensitivity_by_block(data.steps, width, unit),
        least=90 + 22 * min(24, len(blocks)),
    )
    options = Figure(
        "options-by-operation",
        "Options by operation",
        f"The share of each operation's layers that got each option. {option_key()}",
        data.choices and options_by_operation({"": data.choices}, width),
    )
    steps = Figure(
        "damage-by-step",
        "Which steps suffer",
        f"The damage to the denoiser's output expected from {data.expected_from} if every layer had about 3 bits, by "
        "operation: as a share of all, and of it in the early steps, which decide what a picture shows, the middle "
        "ones, and the late ones, which draw details. No picture was measured for it.",
        data.expected and damage_by_step(data.expected, width),
    )
    return [figure for figure in (cost, chosen, operations, depth, steps, options) if figure.chart]


def roots(steps: Sequence[LayerStep]) -> str:
    """The sentence about the scale of costs, where it is not linear."""
    drawn = " The scale is of square roots, as a few costs are far above all others."
    return drawn if uneven([s.step.cost for s in steps]) else ""


def predictor_figures(data: ReportData, width: Width = 720) -> list[Figure]:
    """How far the predictor can be trusted."""
    quality = data.predictor
    if quality is None:
        return []
    text = (
        "Spearman's rank correlation of predicted and measured quality: 1 is the same order, 0 is no relation. "
        "Horizontal lines are 95 % intervals."
    )
    if quality.noise_ceiling is not None:
        text += (
            " The dashed line is the noise ceiling: what a perfect predictor would reach, as measurements are noisy."
        )
    chart = predictor_quality(quality, width)
    figures = [Figure("predictor-quality", "Rank correlation on unseen configurations", text, chart, half=True)]
    if quality.pairs:
        text = f"{len(quality.pairs)} configurations that the predictor was not fitted to. Only their order matters."
        chart = predicted_against_measured(quality, axis_title(data.objective), width)
        figures.append(Figure("predicted-against-measured", "Predicted against measured", text, chart, half=True))
    return figures
