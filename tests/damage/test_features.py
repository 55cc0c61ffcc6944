"""Features of options: named groups of columns, and models of some of them alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.conftest import Task

from qua2sedimo.bank import Bank
from qua2sedimo.damage import DECIBEL, Features, Observations, fit_damage, option_features


def test_groups_name_every_column_once_and_hold_what_they_say(task: Task) -> None:
    features = option_features(task.graph, task.space, task.bank)
    columns = np.concatenate([np.arange(features.mean.size)[of] for of in features.groups.values()])
    assert sorted(columns) == list(range(features.values.shape[2]))
    assert (features.values[..., features.groups["level"]] == 1).all()
    blocks = features.values[:, 0, features.groups["block"]].argmax(axis=1)
    names = [task.graph.layers[n].block for n in task.space.layers]
    assert len(set(zip(blocks, names))) == len(set(names)) == len(set(blocks))


def test_errors_are_logarithms_of_the_banks_and_continuous_features_standardised(task: Task) -> None:
    features = option_features(task.graph, task.space, task.bank)
    error = features.values[..., features.groups["error"]][..., 0]
    for i, name in enumerate(task.space.layers):
        expected = [np.log(task.bank.errors[name][o].relative_mse) for o in task.space.options[name]]
        np.testing.assert_allclose(np.diff(error[i, : len(expected)]), np.diff(expected), rtol=1e-4)
    for group in ("bits", "average bits", "weights", "depth"):
        column = features.values[..., features.groups[group]][features.offered]
        assert abs(column.mean()) < 1e-9 and abs(column.std() - 1) < 1e-9


def test_chosen_groups_keep_their_columns_and_prior_and_lose_own_effects(task: Task) -> None:
    features = option_features(task.graph, task.space, task.bank)
    some = features.only("level", "layer")
    np.testing.assert_array_equal(
        some.values[..., some.groups["layer"]], features.values[..., features.groups["layer"]]
    )
    assert list(some.groups) == ["level", "layer"] and some.own == 0 < features.own
    assert some.deviation[some.groups["level"]] == features.deviation[features.groups["level"]]


def informed(task: Task, sensitivity: dict[str, float]) -> Bank:
    """The task's bank as if gradients had found these sensitivities of the layers."""
    bank = copy.copy(task.bank)
    bank.errors = {
        n: {o: replace(e, cost=sensitivity[n] * e.relative) for o, e in of.items()}
        for n, of in task.bank.errors.items()
    }
    return bank


def ranks(task: Task, features: Features, sensitivity: dict[str, float], records: int) -> float:
    """Rank correlation on 100 unseen configurations, of a model fitted to this many, with the true quality."""
    choices = task.choices(records + 100)
    quality = task.quality(choices, sensitivity)
    seen, unseen = choices[:records], choices[records:]
    ones = np.ones(records, dtype=int)
    model = fit_damage(features, Observations(seen, -DECIBEL * quality[:records], ones, 0 * ones))
    return float(spearmanr(-model.predict(unseen), quality[records:]).statistic)


@pytest.fixture(scope="module")
def sensitivity(task: Task) -> dict[str, float]:
    """Layers that differ as they do in denoisers."""
    return dict(zip(task.space.layers, np.exp(1.5 * np.random.default_rng(3).normal(size=len(task.space.layers)))))


def test_gradients_rank_configurations_before_anything_is_measured(task: Task, sensitivity: dict[str, float]) -> None:
    without = ranks(task, option_features(task.graph, task.space, task.bank), sensitivity, 0)
    known = ranks(task, option_features(task.graph, task.space, informed(task, sensitivity)), sensitivity, 0)
    assert known > 0.9 and known > without + 0.05


def test_gradients_that_are_wrong_are_corrected_by_records(task: Task, sensitivity: dict[str, float]) -> None:
    shuffled = dict(zip(sensitivity, np.random.default_rng(4).permutation(list(sensitivity.values()))))
    features = option_features(task.graph, task.space, informed(task, shuffled))
    found = [ranks(task, features, sensitivity, records) for records in (0, 100)]
    assert found[1] > 0.95 and found[1] > found[0]


def test_a_model_never_thinks_that_more_error_is_better(task: Task, sensitivity: dict[str, float]) -> None:
    features = option_features(task.graph, task.space, informed(task, sensitivity))
    few = np.zeros(0, dtype=int)
    model = fit_damage(features, Observations(task.choices(1)[:0], np.zeros(0), few, few))
    rng = np.random.default_rng(0)
    drawn = [model.draw(rng, spread=4.0) for _ in range(50)]
    assert all((of.weights[power] > 0).all() for of in drawn for power in features.powers) and len(features.powers) == 2


def test_where_gradients_are_not_known_their_group_is_left_out(task: Task, sensitivity: dict[str, float]) -> None:
    without = option_features(task.graph, task.space, task.bank)
    assert "cost" not in without.groups and without.only("error", "cost").groups.keys() == {"error"}
    known = option_features(task.graph, task.space, informed(task, sensitivity))
    assert known.only("error", "cost").groups.keys() == {"error", "cost"}
    nothing = informed(task, dict.fromkeys(sensitivity, 0.0))
    assert np.isfinite(option_features(task.graph, task.space, nothing).values).all()
