"""Features of options: named groups of columns, and models of some of them alone."""

from __future__ import annotations

import numpy as np
from tests.conftest import Task

from qua2sedimo.damage import option_features


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
