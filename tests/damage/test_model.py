"""The damage model finds the sensitivities that made the data, and knows what it does not know."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.conftest import Task
from tests.damage.made_up import (
    FEATURES,
    LAYERS,
    NOTHING,
    TRUE,
    alone,
    damage,
    features,
    observed,
    seen,
    sensitivity,
    whole,
)

from qua2sedimo.damage import DECIBEL, DamageModel, fit_damage, fit_gain

SENSITIVE = {"transformer_blocks.0.attn1.to_k": 100.0, "transformer_blocks.1.ff.net.2": 30.0}


def scatter(model: DamageModel, count: int = 200) -> np.ndarray:
    """Sensitivities of drawn models [draws, layers]."""
    return np.stack([sensitivity(model.draw(np.random.default_rng(i))) for i in range(count)])


def fitted(task: Task, choices: np.ndarray, quality: np.ndarray) -> DamageModel:
    return fit_gain(task.encoding.damage, choices, quality)[0]


def test_layers_measured_alone_give_their_sensitivities() -> None:
    model = fit_damage(FEATURES, observed((0, alone())))
    assert np.corrcoef(sensitivity(model), TRUE)[0, 1] > 0.95


def test_records_of_all_layers_correct_what_layers_alone_say() -> None:
    few = fit_damage(FEATURES, observed((0, alone()), noise=0.8))
    more = fit_damage(FEATURES, observed((0, alone()), (1, whole(150, 1)), noise=0.8))
    assert np.std(sensitivity(more) - TRUE) < np.std(sensitivity(few) - TRUE)
    test = whole(100, 9)
    rms = [np.std(m.predict(test) - damage(test)) for m in (few, more)]
    assert rms[1] < 0.9 * rms[0]


def test_models_drawn_scatter_as_the_errors_do() -> None:
    test, scaled = whole(60, 9), []
    for seed in range(6):
        model = fit_damage(FEATURES, seen(whole(60, seed), damage(whole(60, seed), 0.3, seed), np.full(60, 1)))
        rng = np.random.default_rng(seed)
        deviation = np.std([model.draw(rng).predict(test) for _ in range(60)], axis=0)
        scaled.append((model.predict(test) - damage(test)) / deviation)
    assert 0.4 < np.sqrt(np.mean(np.square(scaled))) < 2


def test_each_kind_of_record_has_a_noise_of_its_own() -> None:
    parts = [(1, damage(whole(250, 1), 0.1, 1)), (2, damage(whole(250, 2), 0.6, 2))]
    choices = np.concatenate([whole(250, 1), whole(250, 2)])
    model = fit_damage(FEATURES, seen(choices, np.concatenate([y for _, y in parts]), np.repeat([1, 2], 250)))
    assert model.noise[1:] == pytest.approx([0.1, 0.6], rel=0.3)


def test_harder_images_are_not_taken_for_worse_configurations() -> None:
    """Half of the records are of images on which every error counts twice as much."""
    choices, images = whole(120, 4), np.arange(120) % 2
    harder = damage(choices, 0.05) + np.log(2) * images
    known = fit_damage(FEATURES, seen(choices, harder, np.full(120, 1), images))
    unknown = fit_damage(FEATURES, seen(choices, harder, np.full(120, 1)))
    assert np.std(sensitivity(known) - TRUE) < 0.7 * np.std(sensitivity(unknown) - TRUE)
    assert known.noise[1] < 0.5 * unknown.noise[1]


def test_one_observation_is_enough_and_layers_of_its_kind_are_thought_alike() -> None:
    choices = np.full((1, LAYERS), -1)
    choices[0, 0] = 1
    model = fit_damage(FEATURES, seen(choices, np.array([2.0]), np.array([0])))
    assert np.isfinite(model.log_damage).all()
    drawn = scatter(model, 600)
    with_first = [np.corrcoef(drawn[:, 0], drawn[:, i])[0, 1] for i in (4, 10)]
    assert drawn.std(axis=0).argmin() == 0
    assert with_first[0] > with_first[1]  # of the same operation and block as layer 0, against of neither


def test_saturated_damage_is_not_taken_for_insensitivity() -> None:
    limit = -5.0

    def ruined(exact: np.ndarray) -> np.ndarray:
        return exact - np.logaddexp(0, exact - limit)

    choices = np.concatenate([alone(), whole(200, 2)])
    model = fit_damage(FEATURES, seen(choices, ruined(damage(choices)), np.repeat([0, 1], [LAYERS, 200])))
    assert model.limit == pytest.approx(limit, abs=0.4)
    assert np.corrcoef(sensitivity(model), TRUE)[0, 1] > 0.95


def test_before_anything_is_measured_layers_differ_by_their_errors_and_draws_by_all_else() -> None:
    model = fit_damage(FEATURES, NOTHING)
    np.testing.assert_allclose(model.log_damage, FEATURES.values[..., 0])
    assert 1.2 < scatter(model).std() < 2.2  # √3 from operation, block and layer
    np.testing.assert_allclose(model.predict(whole(5, 0)), np.logaddexp.reduce(
        model.log_damage[np.arange(LAYERS), whole(5, 0)], axis=1))  # fmt: skip


def test_in_no_drawn_model_is_more_error_better() -> None:
    model = fit_damage(features(own=0.4), observed((1, whole(3, 3)), noise=3.0))
    powers = [model.draw(np.random.default_rng(i), 8.0).weights[0] for i in range(200)]
    assert min(powers) == 0.1 and max(powers) > 2


def test_records_measured_without_own_effects_leave_single_options_as_their_errors_say() -> None:
    records = observed((1, whole(80, 3)), noise=0.3)
    assert not fit_damage(FEATURES, records).own.any()
    assert fit_damage(features(own=0.4), records).own.any()


def test_log_damages_of_sensitive_layers_stand_out_by_what_was_put_in(task: Task) -> None:
    choices = task.choices(150)
    table = fitted(task, choices, task.quality(choices, SENSITIVE)).log_damage
    true = np.array(
        [
            [np.log(task.bank.errors[n][o].relative_mse * SENSITIVE.get(n, 1.0)) for o in task.space.options[n]]
            for n in task.space.layers
        ]
    )
    names = list(task.space.layers)
    for name in SENSITIVE:
        assert np.abs(table[names.index(name)] - true[names.index(name)]).max() < 0.7
    assert set(np.argsort(-table.mean(axis=1))[:2]) == {names.index(name) for name in SENSITIVE}


def test_unseen_configurations_are_ranked_and_their_errors_predicted(task: Task) -> None:
    known, unseen = task.choices(60), task.choices(60, seed=9)
    found = -fitted(task, known, task.quality(known, SENSITIVE)).predict(unseen) / DECIBEL
    assert spearmanr(found, task.quality(unseen, SENSITIVE)).statistic > 0.97
    assert np.abs(found - task.quality(unseen, SENSITIVE)).mean() < 1.0


def test_left_out_predictions_are_near_those_of_fits_without_the_record(task: Task) -> None:
    choices = task.choices(40)
    quality = task.quality(choices, SENSITIVE) + np.random.default_rng(0).normal(size=40)
    left_out = fitted(task, choices, quality).left_out
    plain = np.empty(40)
    for i in range(40):
        rest = np.delete(np.arange(40), i)
        plain[i] = fitted(task, choices[rest], quality[rest]).predict(choices[[i]])[0]
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
    assert spearmanr(-found.predict(unseen), task.quality(unseen, SENSITIVE)).statistic > 0.97


def test_an_option_that_hurts_more_than_its_error_says_gets_damage_of_its_own(task: Task) -> None:
    choices, name = task.choices(150), "transformer_blocks.0.attn1.to_k"
    layer, errors = task.space.layers.index(name), list(task.bank.errors[name].values())
    harm = np.where(choices[:, layer] == 3, 2 * SENSITIVE[name] * errors[3].relative_mse, 0.0)
    quality = -10 * np.log10(10 ** (-task.quality(choices, SENSITIVE) / 10) + harm)
    own = fitted(task, choices, quality).own[layer]
    assert own.argmax() == 3 and own[3] > 0.2 + np.delete(own, 3).max()


def test_a_layer_measured_alone_is_known_to_be_sensitive_where_few_records_tell_it(task: Task) -> None:
    choices, count = task.choices(12), len(task.space.layers)
    quality = task.quality(choices, SENSITIVE)
    errors = [task.bank.errors[n][task.space.options[n][0]].relative_mse for n in task.space.layers]
    harm = np.array([SENSITIVE.get(n, 1.0) * e for n, e in zip(task.space.layers, errors)])
    singles = alone(count), -10 * np.log10(harm)
    unseen = task.choices(60, seed=9)
    ranks = [
        spearmanr(
            -fit_gain(task.encoding.damage, choices, quality, some)[0].predict(unseen), task.quality(unseen, SENSITIVE)
        ).statistic
        for some in (None, singles)
    ]
    assert ranks[1] > max(0.97, ranks[0])


def test_an_objective_in_other_units_is_ranked_as_well_and_its_unit_found(task: Task) -> None:
    choices, unseen = task.choices(60), task.choices(60, seed=9)
    quality = 0.01 * task.quality(choices, SENSITIVE) - 3
    model, unit = fit_gain(task.encoding.damage, choices, quality)
    assert spearmanr(-model.predict(unseen), task.quality(unseen, SENSITIVE)).statistic > 0.9
    assert unit > 10 * DECIBEL
    assert fit_gain(task.encoding.damage, choices, task.quality(choices, SENSITIVE))[1] == pytest.approx(DECIBEL)


def test_noise_alone_is_no_reason_to_leave_decibels(task: Task) -> None:
    """At so much noise some other unit predicts left-out records a little better by chance."""
    choices = task.choices(60)
    for seed in range(4):
        quality = task.quality(choices, SENSITIVE) + 3 * np.random.default_rng(seed).normal(size=60)
        model, unit = fit_gain(task.encoding.damage, choices, quality)
        assert np.corrcoef(-model.left_out, quality)[0, 1] < 0.9
        assert unit == pytest.approx(DECIBEL)


def test_equal_objectives_are_fitted_without_a_word(task: Task, recwarn: pytest.WarningsRecorder) -> None:
    model, unit = fit_gain(task.encoding.damage, task.choices(20), np.full(20, 30.0))
    assert unit == pytest.approx(DECIBEL) and not recwarn.list
    np.testing.assert_allclose(-model.left_out / DECIBEL, 30.0, atol=2.0)


def test_scores_add_up_to_the_order_of_the_predictions(task: Task) -> None:
    choices = task.choices(60)
    model = fitted(task, choices, task.quality(choices, SENSITIVE))
    scores = model.scores(task.space)
    assert {n: list(of) for n, of in scores.items()} == {n: list(of) for n, of in task.space.options.items()}
    sums = [sum(scores[n][o] for n, o in task.space.decode(choice).items()) for choice in choices]
    assert spearmanr(sums, -model.predict(choices)).statistic == pytest.approx(1.0)


def test_eight_hundred_layers_of_sixteen_options_are_fitted_in_seconds() -> None:
    """What 60 records of a big network say needs no matrix of parameters by parameters (12,800 × 12,800 = 1.3 GB)."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(800, 16, 1)), np.ones((800, 16, 1))], axis=2)
    known = type(FEATURES)(
        values, np.ones((800, 16), dtype=bool), {"error": slice(0, 1), "level": slice(1, 2)},
        np.array([1.0, 0.0]), np.array([0.7, 5.0]), 0.4,
    )  # fmt: skip
    choices = rng.integers(16, size=(60, 800))
    y = np.logaddexp.reduce(values[np.arange(800), choices, 0], axis=1)
    model = fit_damage(known, seen(choices, y, np.full(60, 1)))
    assert np.corrcoef(model.predict(choices), y)[0, 1] > 0.9
    assert model.draw(rng).log_damage.shape == (800, 16)
