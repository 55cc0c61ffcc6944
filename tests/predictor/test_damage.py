"""Damages fitted in closed form: they are the truth where the truth is a sum, and left-out means left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.conftest import Task

from qua2sedimo.predictor.damage import Alone, Damages, fit_damage
from qua2sedimo.predictor.training import DECIBEL

SENSITIVE = {"transformer_blocks.0.attn1.to_k": 100.0, "transformer_blocks.1.ff.net.2": 30.0}


def fitted(task: Task, choices: np.ndarray, quality: np.ndarray, alone: Alone | None = None) -> Damages:
    single = None if alone is None else (alone.layers, alone.options, -DECIBEL * alone.objective)
    return fit_damage(features(task), *task.encoding.prior, choices, -DECIBEL * quality, single)


def features(task: Task) -> np.ndarray:
    return task.encoding.options()[..., :-1].double().numpy()


def test_log_damages_of_sensitive_layers_stand_out_by_what_was_put_in(task: Task) -> None:
    choices = task.choices(150)
    table = fitted(task, choices, task.quality(choices, SENSITIVE)).logarithms(features(task))
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
    found = fitted(task, known, task.quality(known, SENSITIVE)).predicted(features(task), unseen)
    assert spearmanr(-found, task.quality(unseen, SENSITIVE)).statistic > 0.97


def test_left_out_predictions_are_near_those_of_fits_without_the_record(task: Task) -> None:
    choices = task.choices(40)
    quality = task.quality(choices, SENSITIVE) + np.random.default_rng(0).normal(size=40)
    left_out = fitted(task, choices, quality).left_out
    plain = np.empty(40)
    for i in range(40):
        rest = np.delete(np.arange(40), i)
        plain[i] = fitted(task, choices[rest], quality[rest]).predicted(features(task), choices[[i]])[0]
    assert np.corrcoef(left_out, plain)[0, 1] > 0.95
    assert np.abs(left_out - plain).mean() < 0.5 * np.abs(-DECIBEL * quality - left_out).mean()


def test_where_pictures_are_ruined_the_limit_is_found(task: Task) -> None:
    choices = task.choices(120)
    quality = task.quality(choices, SENSITIVE)
    limit = -DECIBEL * float(np.median(quality))
    error = -DECIBEL * quality
    found = fitted(task, choices, -(error - np.logaddexp(0, error - limit)) / DECIBEL)
    assert found.limit == pytest.approx(limit, abs=0.5)
    assert fitted(task, choices, quality).limit > error.max()
    unseen = task.choices(60, seed=9)
    assert spearmanr(-found.predicted(features(task), unseen), task.quality(unseen, SENSITIVE)).statistic > 0.97


def test_an_option_that_hurts_more_than_its_error_says_gets_damage_of_its_own(task: Task) -> None:
    choices, name = task.choices(150), "transformer_blocks.0.attn1.to_k"
    layer, errors = task.space.layers.index(name), list(task.bank.errors[name].values())
    harm = np.where(choices[:, layer] == 3, 2 * SENSITIVE[name] * errors[3].relative_mse, 0.0)
    quality = -10 * np.log10(10 ** (-task.quality(choices, SENSITIVE) / 10) + harm)
    own = fitted(task, choices, quality).own[layer]
    assert own.argmax() == 3 and own[3] > 0.2 + np.delete(own, 3).max()


def test_a_layer_measured_alone_is_known_to_be_sensitive_where_few_records_tell_it(task: Task) -> None:
    choices = task.choices(12)
    quality, layers = task.quality(choices, SENSITIVE), np.arange(len(task.space.layers))
    errors = [task.bank.errors[n][task.space.options[n][0]].relative_mse for n in task.space.layers]
    damage = np.array([SENSITIVE.get(n, 1.0) * e for n, e in zip(task.space.layers, errors)])
    alone = Alone(layers, np.zeros_like(layers), -10 * np.log10(damage))
    unseen = task.choices(60, seed=9)
    ranks = [
        spearmanr(-fitted(task, choices, quality, a).predicted(features(task), unseen), task.quality(unseen, SENSITIVE))
        for a in (None, alone)
    ]
    assert ranks[1].statistic > max(0.97, ranks[0].statistic)


def test_an_objective_in_other_units_is_ranked_as_well(task: Task) -> None:
    from qua2sedimo.predictor import FitSettings, fit_ensemble

    choices = task.choices(60)
    quality = 0.01 * task.quality(choices, SENSITIVE) - 3
    found = fit_ensemble(task.encoding, choices, quality, FitSettings(epochs=2, channels=4, hops=1, folds=3))
    positions, predicted = found.out_of_fold()
    assert spearmanr(predicted, quality[positions]).statistic > 0.9
    assert np.median(predicted) == pytest.approx(np.median(quality), abs=quality.std())
