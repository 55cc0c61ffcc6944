"""What the network has to beat."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.conftest import Task

from qua2sedimo.predictor.baselines import additive, additive_model, one_hot, out_of_fold, relative_errors, ridge


def test_one_hot_marks_one_option_a_layer(task: Task) -> None:
    choices = task.choices(6)
    x = one_hot(task.space, choices)
    assert x.shape == (6, sum(map(len, task.space.options.values())))
    assert (x.sum(axis=1) == len(task.space.layers)).all()
    start = 0
    for i, name in enumerate(task.space.layers):
        options = len(task.space.options[name])
        assert (x[:, start : start + options].argmax(axis=1) == choices[:, i]).all()
        start += options


def test_ridge_recovers_an_additive_function_and_ignores_noise_columns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6))
    y = x @ [2.0, -1.0, 0.5, 0, 0, 0] + 3
    assert ridge(x[:60], y[:60], x[60:]) == pytest.approx(y[60:], abs=0.02)


def test_the_penalty_is_large_where_there_is_nothing_to_learn() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 30)), rng.normal(size=40)
    assert ridge(x, y, rng.normal(size=(200, 30))).std() < 0.7 * y.std()


def test_the_additive_baseline_ranks_sums_and_knows_no_effect_of_single_options(task: Task) -> None:
    choices, unseen = task.choices(60), task.choices(60, seed=9)
    harm = {"transformer_blocks.0.attn1.to_k": 100.0}
    predicted = additive(task.encoding.damage, choices, task.quality(choices, harm), unseen)
    assert spearmanr(predicted, task.quality(unseen, harm)).statistic > 0.97
    assert not additive_model(task.encoding.damage, choices, task.quality(choices, harm)).own.any()


def test_relative_errors_are_the_banks_of_the_chosen_options(task: Task) -> None:
    choices = task.choices(3)
    errors = relative_errors(task.space, task.bank, choices)
    assert errors.shape == choices.shape
    for row, choice in zip(errors, choices, strict=True):
        for layer, value, option in zip(task.space.layers, row, choice, strict=True):
            assert value == task.bank.errors[layer][task.space.options[layer][option]].relative_mse


def test_a_record_has_no_part_in_its_own_prediction(task: Task) -> None:
    choices = task.choices(24)
    quality, folds = task.quality(choices), [list(range(i, 24, 3)) for i in range(3)]
    x = one_hot(task.space, choices)
    plain = out_of_fold(ridge, x, quality, folds)
    changed = quality.copy()
    changed[folds[1]] += 100
    again = out_of_fold(ridge, x, changed, folds)
    assert np.array_equal(plain[folds[1]], again[folds[1]])
    assert not np.allclose(plain[folds[0]], again[folds[0]])
