"""Every chart compiles, whatever the names in it, and the numbers under the charts are right."""

from __future__ import annotations

import dataclasses

import pytest

from qua2sedimo.report import LayerScore, MeasuredPoint, MetricValue
from qua2sedimo.report.charts import all_figures
from qua2sedimo.report.costs import in_order, layer_costs
from qua2sedimo.report.labels import label_places
from qua2sedimo.report.render import svg_of
from qua2sedimo.report.style import NOTHING, cost_scale, short_option, uneven
from qua2sedimo.report.text import digits_for, number, size_text, verdict

from .synthetic import synthetic_data


def test_a_finite_full_precision_value_is_drawn_as_a_line() -> None:
    data = synthetic_data(blocks=1, records=3)
    full = MeasuredPoint(16, 31.5, 31.5, 31.5, "full", "full precision")
    chart = all_figures(dataclasses.replace(data, points=[*data.points[1:], full]))[0].chart
    assert ">full precision<" in svg_of(chart.to_dict())


def score(option: str, bits: float, value: float, spread: float = 0.3) -> LayerScore:
    method, _, nominal = option.rpartition("-")
    return LayerScore("layer", "FF 1", "block 0", 0, option, method, int(nominal), bits, value, spread)


def test_the_cost_is_that_of_the_best_option_of_about_4_against_about_3_bits() -> None:
    options = [score("uaq-4", 4.1, 1.0), score("kmeans_a-4", 4.0, 1.2), score("kmeans_c-3", 3.5, 0.5, 0.4),
               score("uaq-3", 3.1, 0.2), score("uaq-8", 8.1, 2.0)]  # fmt: skip
    (cost,) = layer_costs(options)
    assert (cost.better, cost.worse, cost.exact) == ("kmeans_a-4", "kmeans_c-3", True)
    assert cost.cost == pytest.approx(0.7) and cost.spread == pytest.approx(0.5)


def test_without_options_of_4_and_3_bits_the_cost_is_per_bit_between_the_nearest() -> None:
    (cost,) = layer_costs([score("uaq-2", 2.2, 0.0), score("uaq-5", 5.2, 1.5), score("uaq-8", 8.2, 9.0)])
    assert (cost.better, cost.worse, cost.exact) == ("uaq-5", "uaq-2", False)
    assert cost.cost == pytest.approx(0.5)


def test_a_layer_with_one_option_has_no_cost() -> None:
    assert layer_costs([score("uaq-4", 4.1, 1.0)]) == []
    assert layer_costs([score("uaq-4", 4.1, 1.0), score("uaq-3", 3.1, float("nan"))]) == []


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
    assert digits_for([MetricValue(27.1, 26.3, 28.0, 64)]) == 1
    assert digits_for([MetricValue(0.39, 0.367, 0.426, 64)]) == 3
    assert digits_for([MetricValue(0, 0, 0, 64), MetricValue(float("inf"), float("inf"), float("inf"), 64)]) == 2
    assert number(-0.001, 2) == "0.00" and number(-1.25, 1) == "−1.2" and number(float("inf"), 1) == "∞"
    assert size_text(3_021_112) == "3.02 MB" and size_text(900) == "900 bytes"
    assert short_option("kmeans_c-4") == "C4"


def test_the_verdict_claims_a_difference_only_when_the_intervals_are_apart() -> None:
    data = synthetic_data(blocks=1)
    assert "ours is clearly better" in verdict(data) and "at least as good is “uniform UAQ, 4 bits”" in verdict(data)
    near = [
        dataclasses.replace(row, metrics={"psnr": MetricValue(26.9, 26.0, 27.8, 64)})
        if row.name.startswith("uniform")
        else row
        for row in data.table
    ]
    assert "no clear difference" in verdict(dataclasses.replace(data, table=near))
    assert verdict(dataclasses.replace(data, objective="unknown")) == ""
