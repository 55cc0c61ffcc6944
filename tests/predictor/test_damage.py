"""Damages fitted in closed form: they are the truth where the truth is a sum, and left-out means left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.conftest import Task

from qua2sedimo.predictor.damage import fit_damage
from qua2sedimo.predictor.training import DECIBEL

SENSITIVE = {"transformer_blocks.0.attn1.to_k": 100.0, "transformer_blocks.1.ff.net.2": 30.0}


def fitted(task: Task, choices: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = task.encoding.options().double().numpy()
    weights, left_out = fit_damage(features, *task.encoding.prior, choices, -DECIBEL * quality)
    return features @ weights, left_out


def test_log_damages_of_sensitive_layers_stand_out_by_what_was_put_in(task: Task) -> None:
    choices = task.choices(150)
    table, _ = fitted(task, choices, task.quality(choices, SENSITIVE))
    true = np.array(
        [
            [
                np.log(task.bank.errors[n][o].relative_mse * SENSITIVE.get(n, 1.0))
                for o in task.space.options[n]
            ]
            for n in task.space.layers
        ]
    )  # fmt: skip
    names = list(task.space.layers)
    for name in SENSITIVE:
        assert np.abs(table[names.index(name)] - true[names.index(name)]).max() < 0.7
    assert set(np.argsort(-table.mean(axis=1))[:2]) == {names.index(name) for name in SENSITIVE}


def test_unseen_configurations_are_ranked(task: Task) -> None:
    known, unseen = task.choices(60), task.choices(60, seed=9)
    table, _ = fitted(task, known, task.quality(known, SENSITIVE))
    total = np.exp(table[np.arange(table.shape[0]), unseen]).sum(axis=1)
    assert spearmanr(-total, task.quality(unseen, SENSITIVE)).statistic > 0.97


def test_left_out_predictions_are_near_those_of_fits_without_the_record(task: Task) -> None:
    choices = task.choices(40)
    quality = task.quality(choices, SENSITIVE) + np.random.default_rng(0).normal(size=40)
    _, left_out = fitted(task, choices, quality)
    plain = []
    for i in range(40):
        rest = np.delete(np.arange(40), i)
        table, _ = fitted(task, choices[rest], quality[rest])
        plain.append(np.log(np.exp(table[np.arange(table.shape[0]), choices[i]]).sum()))
    assert np.corrcoef(left_out, plain)[0, 1] > 0.95
    assert np.abs(left_out - plain).mean() < 0.5 * np.abs(-DECIBEL * quality - left_out).mean()


def test_an_objective_in_other_units_is_ranked_as_well(task: Task) -> None:
    from qua2sedimo.predictor import FitSettings, fit_ensemble

    choices = task.choices(60)
    quality = 0.01 * task.quality(choices, SENSITIVE) - 3
    found = fit_ensemble(task.encoding, choices, quality, FitSettings(epochs=2, channels=4, hops=1, folds=3))
    positions, predicted = found.out_of_fold()
    assert spearmanr(predicted, quality[positions]).statistic > 0.9
    assert np.median(predicted) == pytest.approx(np.median(quality), abs=quality.std())
