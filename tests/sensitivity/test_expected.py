"""Where gradients expect damage: shares that add up, the sensitive layer first, steps told apart, no record needed."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch
from tests.conftest import Task, small_pipeline, small_settings

from qua2sedimo import Study
from qua2sedimo.bank import Bank
from qua2sedimo.option_changes import LayerChanges, OptionChanges
from qua2sedimo.sensitivity import expected_by, expected_damage, write_expected

#: Six calls, two in each third of sampling.
PLACES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def weighed(task: Task, late: str) -> Bank:
    """A bank whose options change the output by the root of their error: a layer ``late`` ten times as much, in late
    steps only."""
    bank = copy.copy(task.bank)
    found = {}
    for layer, errors in bank.errors.items():
        sizes = torch.tensor([error.relative_mse for error in errors.values()]).sqrt()
        steps = torch.tensor([0, 0, 0, 0, 10, -10]) if layer == late else torch.tensor([1, -1, 1, 1, -1, 1])
        order = [list(errors).index(option) for option in bank.space.options[layer]]
        found[layer] = LayerChanges(sizes[order][:, None] * steps[None].float(), PLACES)
    bank.changes = OptionChanges(bank.space, found, True)
    return bank


def test_shares_add_up_and_the_sensitive_layer_comes_first_with_its_steps(task: Task) -> None:
    late = task.space.layers[3]
    rows = expected_damage(task.graph.layers, weighed(task, late))
    assert rows[0].layer.name == late and len(rows) == len(task.space.layers)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert rows[0].thirds == (0, 0, 1)
    for row in rows[1:]:
        assert row.thirds == pytest.approx((1 / 3,) * 3)
    for by in ("operation", "block", "stage"):
        groups = expected_by(rows, by)
        assert sum(g.share for g in groups) == pytest.approx(1) == pytest.approx(sum(g.weights for g in groups))
        assert sum(g.layers for g in groups) == len(rows)
        assert all(sum(g.thirds) == pytest.approx(1) for g in groups)
        assert [g.per_weight for g in groups] == sorted((g.per_weight for g in groups), reverse=True)


def test_a_bit_more_counts_as_a_factor_of_four(task: Task) -> None:
    """So layers that have no option of three bits are compared with others."""
    late = task.space.layers[3]
    bank = weighed(task, late)
    rows = {row.layer.name: row for row in expected_damage(task.graph.layers, bank)}
    wide = copy.copy(bank)
    wide.space = bank.space.restricted(
        {n: [o for o in of if n != late or o.number >= 4] for n, of in bank.space.options.items()}
    )
    kept = [i for i, o in enumerate(bank.space.options[late]) if o.number >= 4]
    changes = {**bank.changes.of, late: LayerChanges(bank.changes.of[late].values[kept], PLACES)}
    wide.changes = OptionChanges(wide.space, changes, True)
    without = {row.layer.name: row for row in expected_damage(task.graph.layers, wide)}
    assert without[late].option.number >= 4 > rows[late].option.number
    assert 0.3 < (without[late].share / (1 - without[late].share)) / (rows[late].share / (1 - rows[late].share)) < 3


def test_a_bank_that_was_not_weighed_says_nothing(task: Task, tmp_path: Path) -> None:
    assert expected_damage(task.graph.layers, task.bank) == []
    assert expected_by([], "block") == []


def test_it_needs_no_record_and_leaves_a_table(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", small_settings(), small_pipeline())
    rows = study.expected_damage()
    assert sum(row.share for row in rows) == pytest.approx(1) and study.workspace.records.all() == []
    with (study.folder / "sensitivity-expected.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["layer"] for row in table] == [row.layer.name for row in rows]
    for row in table:
        assert float(row["early"]) + float(row["middle"]) + float(row["late"]) == pytest.approx(1)
    write_expected(rows, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (study.folder / "sensitivity-expected.csv").read_bytes()
