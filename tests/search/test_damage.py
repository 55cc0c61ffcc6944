"""The additive model finds the sensitivities that made the data, and knows what it does not know."""

from __future__ import annotations

import numpy as np
import pytest

from qua2sedimo.search import DamageModel, Features, Observations, fit_damage
from qua2sedimo.search.damage import prior_damage

LAYERS, BITS = 24, np.arange(2, 7)
KINDS = [[i % 4 for i in range(LAYERS)], [i // 6 for i in range(LAYERS)], list(range(LAYERS))]
RNG = np.random.default_rng(0)
TRUE = -4 + np.repeat(RNG.normal(size=4), 6) + RNG.normal(size=LAYERS)


def features() -> Features:
    """ln error, −1.4 a bit; the level; which of four operations, of four blocks, and which layer it is."""
    errors = np.broadcast_to(-1.4 * BITS, (LAYERS, len(BITS)))[..., None]
    one_hot = np.concatenate([np.eye(max(kind) + 1)[kind] for kind in KINDS], axis=1)
    places = np.broadcast_to(one_hot[:, None], (LAYERS, len(BITS), one_hot.shape[1]))
    values = np.concatenate([errors, np.ones_like(errors), places], axis=2)
    mean, deviation = np.zeros(values.shape[2]), np.ones(values.shape[2])
    mean[0], deviation[:2] = 1.0, (0.2, 5.0)
    return Features(values, np.ones((LAYERS, len(BITS)), dtype=bool), mean, deviation)


FEATURES = features()


def sensitivity(model: DamageModel) -> np.ndarray:
    """ln sensitivity of each layer, the error's part taken off."""
    return model.log_damage[:, 0] - model.weights[0] * FEATURES.values[0, 0, 0]


def uncertainty(model: DamageModel) -> np.ndarray:
    at = FEATURES.values[:, 0, 1:]
    count = FEATURES.values.shape[2]
    return np.sqrt(np.einsum("ij,jk,ik->i", at, model.covariance[1:count, 1:count], at))


def whole(count: int, seed: int) -> np.ndarray:
    """Random configurations: 2 to 6 bits a layer."""
    return np.random.default_rng(seed).integers(len(BITS), size=(count, LAYERS))


def alone() -> np.ndarray:
    """Each layer alone at 2 bits."""
    return np.where(np.eye(LAYERS, dtype=bool), 0, -1)


def damage(choices: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    exact = np.logaddexp.reduce(np.where(choices >= 0, TRUE - 1.4 * BITS[choices], -np.inf), axis=1)
    return exact + noise * np.random.default_rng(seed).normal(size=len(exact))


def seen(
    choices: np.ndarray, log_damage: np.ndarray, kind: np.ndarray, images: np.ndarray | None = None
) -> Observations:
    return Observations(choices, log_damage, kind, np.zeros(len(kind), dtype=int) if images is None else images)


def observed(*parts: tuple[int, np.ndarray], noise: float = 0.0) -> Observations:
    return seen(
        np.concatenate([e for _, e in parts]),
        np.concatenate([damage(e, noise, i) for i, (_, e) in enumerate(parts)]),
        np.concatenate([np.full(len(e), kind) for kind, e in parts]),
    )


def test_layers_measured_alone_give_their_sensitivities() -> None:
    model = fit_damage(FEATURES, observed((0, alone())))
    assert np.corrcoef(sensitivity(model), TRUE)[0, 1] > 0.95


def test_records_of_all_layers_correct_what_layers_alone_say() -> None:
    few = fit_damage(FEATURES, observed((0, alone()), noise=0.8))
    more = fit_damage(FEATURES, observed((0, alone()), (1, whole(150, 1)), noise=0.8))
    assert np.std(sensitivity(more) - TRUE) < np.std(sensitivity(few) - TRUE)
    test = whole(100, 9)
    rms = [np.std(m.predict(test)[0] - damage(test)) for m in (few, more)]
    assert rms[1] < 0.9 * rms[0]


def test_the_stated_deviation_is_that_of_the_errors() -> None:
    test, scaled = whole(60, 9), []
    for seed in range(6):
        measured = seen(whole(60, seed), damage(whole(60, seed), 0.3, seed), np.full(60, 1))
        predicted, deviation = fit_damage(FEATURES, measured).predict(test)
        scaled.append((predicted - damage(test)) / deviation)
    assert 0.4 < np.sqrt(np.mean(np.square(scaled))) < 2


def test_harder_images_are_not_taken_for_worse_configurations() -> None:
    """Half of the records are of images on which every error counts twice as much."""
    choices, images = whole(120, 4), np.arange(120) % 2
    harder = damage(choices, 0.05) + np.log(2) * images
    told = fit_damage(FEATURES, seen(choices, harder, np.full(120, 1), images))
    untold = fit_damage(FEATURES, seen(choices, harder, np.full(120, 1)))
    assert np.std(sensitivity(told) - TRUE) < 0.7 * np.std(sensitivity(untold) - TRUE)
    assert told.noise[1] < 0.5 * untold.noise[1]


def test_one_observation_is_enough_and_layers_of_its_kind_are_thought_alike() -> None:
    choices = np.full((1, LAYERS), -1)
    choices[0, 0] = 1
    model = fit_damage(FEATURES, seen(choices, np.array([2.0]), np.array([0])))
    assert np.isfinite(model.log_damage).all()
    uncertain = uncertainty(model)
    assert uncertain.argmin() == 0
    assert uncertain[4] < uncertain[10]  # of the same operation and block as layer 0, against of neither


def test_saturated_damage_is_not_taken_for_insensitivity() -> None:
    limit = -5.0

    def ruined(exact: np.ndarray) -> np.ndarray:
        return exact - np.logaddexp(0, exact - limit)

    choices = np.concatenate([alone(), whole(200, 2)])
    model = fit_damage(FEATURES, seen(choices, ruined(damage(choices)), np.repeat([0, 1], [LAYERS, 200])))
    assert model.limit == pytest.approx(limit, abs=0.4)
    assert np.corrcoef(sensitivity(model), TRUE)[0, 1] > 0.95


def test_drawn_models_scatter_as_the_posterior_says() -> None:
    model = fit_damage(FEATURES, observed((1, whole(40, 3)), noise=0.2))
    rng = np.random.default_rng(0)
    drawn = np.stack([sensitivity(model.draw(rng)) for _ in range(400)])
    expected = uncertainty(model)
    np.testing.assert_allclose(drawn.std(axis=0), expected, rtol=0.2)
    np.testing.assert_allclose(drawn.mean(axis=0), sensitivity(model), atol=4 * expected.max() / 20)


def test_before_anything_is_measured_layers_differ_by_their_errors_and_draws_by_all_else() -> None:
    model = prior_damage(FEATURES)
    np.testing.assert_allclose(model.log_damage, FEATURES.values[..., 0])
    drawn = np.stack([sensitivity(model.draw(np.random.default_rng(i))) for i in range(200)])
    assert 1.2 < drawn.std() < 2.2  # √3 from operation, block and layer
