"""Every chart compiles, whatever the names in it, and the numbers under the charts are right."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from qua2sedimo.formats.text import short_size, size_text
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.report import MeasuredPoint, MetricInfo, ReportData
from qua2sedimo.report.charts.boxes import step_rows
from qua2sedimo.report.charts.figures import all_figures, quality_figures
from qua2sedimo.report.charts.labels import label_places
from qua2sedimo.report.charts.render import svg_of
from qua2sedimo.report.charts.style import NOTHING, cost_scale, in_order, short_option, uneven
from qua2sedimo.report.data import TableRow
from qua2sedimo.report.page.html import render_page
from qua2sedimo.report.page.sentences import answers, quality, savings
from qua2sedimo.report.text import digits_for, number
from qua2sedimo.search.pareto import pareto_front

from .synthetic import synthetic_data


def test_a_finite_full_precision_value_is_drawn_as_a_line() -> None:
    data = synthetic_data(blocks=1, records=3)
    full = MeasuredPoint(16, Estimate(31.5, 31.5, 31.5, 64), "full", "full precision")
    chart = all_figures(dataclasses.replace(data, points=[*data.points[1:], full]))[0].chart
    assert ">full precision<" in svg_of(chart.to_dict())


def test_blocks_keep_their_order_between_input_and_output() -> None:
    assert in_order(["block 0", "input", "output", "block 1", "block 0"]) == [
        "input",
        "block 0",
        "block 1",
        "output",
    ]


def test_labels_do_not_meet() -> None:
    places = label_places([(3.0, 20.0), (3.02, 20.1), (4.0, 30.0)], ["uaq-3", "kmeans_a-3", ""])
    assert places[2] == "" and places[0] != places[1]


@pytest.mark.parametrize("costs", [[0.0], [1.0, 2.0], [-0.1, 2.0], [-3.0, -1.0], [-2.0, 0.3]])
def test_the_cost_scale_is_faint_at_zero_and_ends_at_the_extremes(costs: list[float]) -> None:
    scale = cost_scale(costs).to_dict()
    assert scale["range"][scale["domain"].index(0.0)] == NOTHING
    assert scale["domain"] == sorted(scale["domain"]) and len(scale["domain"]) == len(scale["range"]) >= 2
    if max(costs) > 0:
        assert scale["domain"][-1] == max(costs)
    if min(costs) < 0:
        assert scale["domain"][0] == min(costs)


def test_costs_are_drawn_by_their_roots_where_one_is_far_above_all_others() -> None:
    assert not uneven([]) and not uneven([0.0, 0.0, 3.0]) and not uneven([0.2, 0.5, 1.0])
    costs = [0.01, 0.02, -0.01, 0.9]
    assert uneven(costs) and cost_scale(costs).to_dict()["type"] == "sqrt"


def test_numbers_have_the_digits_their_intervals_allow() -> None:
    assert digits_for([Estimate(27.1, 26.3, 28.0, 64)]) == 1
    assert digits_for([Estimate(0.39, 0.367, 0.426, 64)]) == 3
    assert digits_for([Estimate(0, 0, 0, 64), Estimate(float("inf"), float("inf"), float("inf"), 64)]) == 2
    assert number(-0.001, 2) == "0.00" and number(-1.25, 1) == "−1.2" and number(float("inf"), 1) == "∞"
    assert short_option("kmeans_c-4") == "C4"


def test_the_verdict_claims_a_difference_only_when_the_intervals_are_apart() -> None:
    data = synthetic_data(blocks=1)
    said = savings(data)
    assert "ours is clearly better" in said and "at least as good is “uniform UAQ, 4 bits”" in said
    assert "% of its bytes" in said
    near = [
        dataclasses.replace(row, metrics={"psnr": Estimate(26.9, 26.0, 27.8, 64)})
        if row.name.startswith("uniform")
        else row
        for row in data.table
    ]
    assert "no clear difference" in savings(dataclasses.replace(data, table=near))
    unknown = dataclasses.replace(data, objective=MetricInfo("unknown", "unknown"))
    assert quality(unknown) == savings(unknown) == ""


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (45.0, 43.0, 47.0, "Yes"),
        (41.0, 38.0, 44.0, "Probably"),
        (31.0, 29.0, 33.0, "Probably"),
        (26.0, 24, 28, "drafts"),
    ],
)
def test_whether_it_is_good_enough_follows_from_the_whole_interval(value, low, high, expected) -> None:
    data = synthetic_data(blocks=1)
    table = [
        dataclasses.replace(row, metrics={"psnr": Estimate(value, low, high, 64)}) if row.kind == "ours" else row
        for row in data.table
    ]
    said = quality(dataclasses.replace(data, table=table))
    assert expected in said and f"{value:.1f} dB ({low:.0f}" in said


def test_other_tools_are_compared_apart_from_uniform_options() -> None:
    data = synthetic_data(blocks=1)
    bits, nbytes = data.ours_bits + 1, data.ours_bytes * 2
    outside = TableRow("GGUF X", "outside", bits, nbytes, {"psnr": Estimate(90.0, 89.0, 91.0, 64)})
    said = savings(dataclasses.replace(data, table=[*data.table, outside]))
    assert f"smallest file of another tool at least as good is “GGUF X” ({bits:.2f} bits" in said
    assert "ours saves 50 % of its bytes" in said


def test_candidates_that_look_better_than_ours_are_explained() -> None:
    data = synthetic_data(blocks=1)
    ours = next(point for point in data.points if point.kind == "ours")
    better = Estimate(ours.quality.value + 1, ours.quality.value, ours.quality.value + 2, 16)
    (plain,) = quality_figures(dataclasses.replace(data, points=[p for p in data.points if p.kind != "candidate"]))
    lucky = MeasuredPoint(ours.bits, better, "candidate", "candidate 3")
    (told,) = quality_figures(dataclasses.replace(data, points=[*data.points, lucky]))
    assert "better than ours" not in plain.text
    assert re.search(r"candidates? looks? better than ours: .* at most 16 pictures", told.text)


def test_seconds_of_a_picture_are_told_only_where_they_were_measured() -> None:
    data = dataclasses.replace(synthetic_data(blocks=1), other_bytes=4_000_000)
    ((_, said),) = [pair for pair in answers(data) if "need" in pair[0]]
    assert "4.00 MB as before" in said and "took" not in said
    times = {"ours": 0.62, "uniform": 0.48}
    timed = [dataclasses.replace(row, seconds=times.get(row.kind)) for row in data.table]
    ((_, said),) = [pair for pair in answers(dataclasses.replace(data, table=timed)) if "need" in pair[0]]
    assert "took 0.62 s" in said and "0.48 s with weights in 16 bits" in said


def test_sizes_have_three_digits_and_short_ones_at_most_five_characters() -> None:
    sizes = [0, 900, 999.6, 1234, 999_999, 3_021_112, 2.5e9, 1.5e12]
    assert [size_text(size) for size in sizes] == [
        "0 bytes", "900 bytes", "1.00 kB", "1.23 kB", "1.00 MB", "3.02 MB", "2.50 GB", "1.50 TB",
    ]  # fmt: skip
    assert [short_size(size) for size in sizes] == ["0", "900", "1.0k", "1.2k", "1.0M", "3.0M", "2.5G", "1.5T"]
    assert max(len(short_size(1.37**power)) for power in range(100)) <= 5


def test_the_pareto_front_has_the_first_of_equals_and_nothing_that_is_beaten() -> None:
    assert pareto_front([3, 1, 2, 2, 1, 4], [5.0, 1.0, 3.0, 3.0, 0.5, 5.0]) == [1, 2, 0]
    assert pareto_front([1, 2], [float("nan"), 1.0]) == [1] and pareto_front([], []) == []


def without_intervals(data: ReportData) -> ReportData:
    """The same study measured on one image."""

    def one(value: Estimate) -> Estimate:
        return Estimate(value.value, math.nan, math.nan, 1)

    table = [
        dataclasses.replace(row, metrics={name: one(value) for name, value in row.metrics.items()})
        for row in data.table
    ]
    assert data.predictor is not None
    return dataclasses.replace(
        data,
        table=table,
        points=[dataclasses.replace(point, quality=one(point.quality)) for point in data.points],
        steps=[dataclasses.replace(s, step=dataclasses.replace(s.step, folds=s.step.folds[:1])) for s in data.steps],
        predictor=dataclasses.replace(data.predictor, rank_correlation=one(data.predictor.rank_correlation)),
    )


def test_where_there_is_no_interval_none_is_drawn_or_claimed() -> None:
    with_them = synthetic_data(blocks=1, records=3)
    data = without_intervals(with_them)
    charts = {figure.name: svg_of(figure.chart.to_dict()) for figure in all_figures(data)}
    before = {figure.name: svg_of(figure.chart.to_dict()) for figure in all_figures(with_them)}
    for name in ("quality-against-bits", "predictor-quality"):
        drawn, earlier = (texts.count('aria-roledescription="rule mark"') for texts in (charts[name], before[name]))
        assert drawn < earlier, name
    assert "nan" not in charts["quality-against-bits"].lower()
    said = savings(data)
    assert "perhaps by chance" in said and "clearly" not in said and " to " not in said
    page = render_page(data)
    assert "± nan" not in page and "± inf" not in page and 'class="n close"' not in page
    for name in ("specifications", "study"):
        found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
        assert found is not None
        json.loads(found[1], parse_constant=pytest.fail)


def test_one_or_two_layers_have_no_box() -> None:
    data = synthetic_data(blocks=3, records=3)
    rows = step_rows(data.steps, "operation")
    assert {row["operation"] for row in rows if row["few"]} == {
        "Patchify", "t-Embed", "AdaLN", "c-Embed", "Out"
    }  # fmt: skip
    drawn = svg_of(next(f.chart for f in all_figures(data) if f.name == "sensitivity-by-operation").to_dict())
    assert drawn.count('aria-roledescription="box"') == len({row["operation"] for row in rows if not row["few"]}) == 10
