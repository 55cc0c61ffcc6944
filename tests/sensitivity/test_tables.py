"""What a bit costs where: on an objective whose sensitive layers are known, the tables and sentences name them."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import Task
from tests.sensitivity.untrained import SENSITIVE

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.predictor import Ensemble, FitSettings, fit_ensemble
from qua2sedimo.sensitivity import (
    LayerStep,
    Sensitivity,
    distributions,
    layer_steps,
    op_scores,
    option_effects,
    step_distributions,
    write_tables,
)
from qua2sedimo.sensitivity.effects import around
from qua2sedimo.sensitivity.steps import Rated, Step, step


@pytest.fixture(scope="module")
def found(task: Task) -> Sensitivity:
    choices = task.choices(120, seed=4)
    gain = task.quality(choices, SENSITIVE)
    ensemble: Ensemble = fit_ensemble(
        task.encoding, choices, gain, FitSettings(epochs=150, folds=3, channels=16, hops=2)
    )
    scores = op_scores(task.space, task.encoding, ensemble)
    effects = option_effects(task.space, task.encoding, ensemble, choices, gain)
    return Sensitivity(task.graph.layers, task.space, task.bank, scores, effects, "dB")


def test_the_layers_made_sensitive_are_those_that_cost_most(found: Sensitivity) -> None:
    assert {s.layer.name for s in found.steps[:3]} == set(SENSITIVE)
    costs = [s.step.cost for s in found.steps]
    assert costs == sorted(costs, reverse=True) and costs[2] > 0


def test_the_costs_are_about_what_the_objective_really_loses(task: Task, found: Sensitivity) -> None:
    """In decibels: the true loss of the known objective around configurations of the same kind."""
    bases = task.choices(120, seed=5)
    bases = bases[around(task.quality(bases, SENSITIVE))]
    true, expected = [], []
    for s in found.steps[:3]:
        column = task.space.layers.index(s.layer.name)
        options = [str(o) for o in task.space.options[s.layer.name]]
        sides = []
        for option in (s.step.better, s.step.worse):
            changed = bases.copy()
            changed[:, column] = options.index(option)
            sides.append(task.quality(changed, SENSITIVE).mean())
        true.append(sides[0] - sides[1])
        expected.append(s.step.cost)
    assert np.mean(expected) == pytest.approx(np.mean(true), rel=0.3)


def test_a_row_for_each_option_the_best_of_a_layer_costing_nothing(task: Task, found: Sensitivity) -> None:
    assert [(r.layer, r.option) for r in found.rows] == [
        (n, str(o)) for n in task.space.layers for o in task.space.options[n]
    ]
    for layer in task.space.layers:
        costs = [r.cost for r in found.rows if r.layer == layer]
        assert min(costs) == 0 and all(c >= 0 for c in costs)
    row = next(r for r in found.rows if r.layer == "transformer_blocks.1.ff.net.2" and r.option == "uaq-3")
    assert (row.operation, row.block_index, row.bits, row.method) == ("FF 2", 1, 3, "uaq")
    assert row.nbytes == round(row.average_bits * row.weights / 8)


def test_the_tables_as_files_hold_every_row(found: Sensitivity, tmp_path: Path) -> None:
    options, groups = write_tables(found.rows, found.steps, tmp_path)
    with options.open(newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert [(x["layer"], x["option"], float(x["cost"])) for x in lines] == [
        (r.layer, r.option, r.cost) for r in found.rows
    ]
    assert {x["block_index"] for x in lines} == {"", "0", "1"}
    with groups.open(newline="") as handle:
        of = {(x["quantity"], x["by"], x["name"]): x for x in csv.DictReader(handle)}
    expected = {d.name: d for d in step_distributions(found.steps, "operation")}
    for name, d in expected.items():
        row = of["cost 4 to 3", "operation", name]
        assert (int(row["count"]), float(row["median"]), row["outliers"]) == (d.count, d.median, "; ".join(d.outliers))
    assert {by for _, by, _ in of} == {"layer", "operation", "block", "block_index", "stage"}


def test_parquet_holds_what_csv_holds_with_types(found: Sensitivity, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    options, groups = write_tables(found.rows, found.steps, tmp_path, "parquet")
    assert parquet.read_table(options).to_pylist() == [asdict(row) for row in found.rows]
    read = parquet.read_table(groups).to_pylist()
    assert all(isinstance(row["outliers"], list) for row in read)
    medians = [d.median for d in distributions(found.rows, "stage")]
    assert [r["median"] for r in read if (r["quantity"], r["by"]) == ("score", "stage")] == medians


def test_a_table_of_unknown_ending_is_refused(found: Sensitivity, tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"unknown ending '\.xlsx'"):
        write_tables(found.rows, found.steps, tmp_path, "xlsx")
    assert not list(tmp_path.iterdir())


def test_distributions_are_those_of_the_groups(found: Sensitivity) -> None:
    groups = {d.name: d for d in distributions(found.rows, "operation")}
    values = np.array([r.score for r in found.rows if r.operation == "SA-Q"])
    assert groups["SA-Q"].count == len(values) == 10
    assert (groups["SA-Q"].low, groups["SA-Q"].median, groups["SA-Q"].high) == pytest.approx(
        (values.min(), np.median(values), values.max())
    )
    by_operation = step_distributions(found.steps, "operation")
    assert [d.median for d in by_operation] == sorted((d.median for d in by_operation), reverse=True)
    assert {d.name for d in step_distributions(found.steps, "block_index")} == {"None", "0", "1"}


def test_what_lies_far_outside_the_quartiles_is_named_as_an_outlier() -> None:
    steps = [made(f"layer {i}", "SA-Q", (1.0 + 0.01 * i,) * 3) for i in range(9)] + [made("odd", "SA-Q", (9.0,) * 3)]
    (group,) = step_distributions(steps, "operation")
    assert group.outliers == ("odd",) and group.high == 9.0


def made(name: str, operation: str, folds: tuple[float, ...], stage: str = "s", block: str = "") -> LayerStep:
    block = block or f"block of {operation}"
    layer = WeightLayer(name, name, None, (4, 4), "Linear", operation, block, None, stage)
    return LayerStep(layer, Step("uaq-4", "uaq-3", folds, True))


def test_the_step_compares_options_within_each_fold() -> None:
    options = {"uaq-4": (4.1, (5.0, 3.0)), "kmeans_a-4": (4.0, (1.0, 1.0)), "uaq-3": (3.1, (0.0, 0.0)),
               "kmeans_a-3": (3.0, (1.0, 2.0)), "kmeans_a-6": (6.0, (50.0, 50.0))}  # fmt: skip
    found = step(Rated(name, bits, folds) for name, (bits, folds) in options.items())
    assert found is not None and (found.better, found.worse, found.exact) == ("uaq-4", "kmeans_a-3", True)
    assert found.folds == (4.0, 1.0) and found.cost == 2.5
    assert found.spread == pytest.approx(np.std([4, 1], ddof=1) / 2**0.5)


def test_without_options_of_4_and_3_bits_the_step_is_per_bit_between_the_nearest() -> None:
    found = step([Rated("uaq-2", 2.0, (0.0, 0.0)), Rated("uaq-5", 5.0, (1.5, 3.0)), Rated("uaq-8", 8.0, (9.0, 9.0))])
    assert found is not None and (found.better, found.worse, found.exact) == ("uaq-5", "uaq-2", False)
    assert found.folds == (0.5, 1.0)
    assert step([Rated("uaq-4", 4.0, (1.0, 1.0))]) is None
    assert step([Rated("uaq-4", 4.1, (1.0,)), Rated("uaq-3", 3.1, (float("nan"),))]) is None


def test_the_step_is_between_the_best_options_of_each_size() -> None:
    good = {"uaq-4": (4.1, 1.0), "kmeans_a-4": (4.0, 1.2), "kmeans_c-3": (3.5, 0.5), "uaq-3": (3.1, 0.2),
            "uaq-8": (8.1, 2.0)}  # fmt: skip
    found = step(Rated(name, bits, (value - 0.1, value + 0.3)) for name, (bits, value) in good.items())
    assert found is not None and (found.better, found.worse, found.exact) == ("kmeans_a-4", "kmeans_c-3", True)
    assert found.cost == pytest.approx(0.7) and found.spread == pytest.approx(0.0)


def test_layers_of_other_sizes_have_a_step_only_where_it_need_not_be_exact(found: Sensitivity) -> None:
    name = found.space.layers[3]
    few = {option: folds for option, folds in found.effects[name].items() if option.bits in (2, 4)}
    effects = {**found.effects, name: few}
    exact, every = (layer_steps(found.layers, found.space, effects, exact) for exact in (True, False))
    assert exact == [s for s in every if s.step.exact] and name not in {s.layer.name for s in exact}
    (cost,) = [s.step for s in every if s.layer.name == name]
    assert not cost.exact and (cost.better[-1], cost.worse[-1]) == ("4", "2")
