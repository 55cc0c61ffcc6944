"""The additive model finds the sensitivities that made the data, and knows what it does not know."""

from __future__ import annotations

import numpy as np
import pytest

from qua2sedimo.search import Observations, fit_damage

LAYERS = 24
GROUPS = [[f"op{i % 4}" for i in range(LAYERS)], [f"block{i // 6}" for i in range(LAYERS)]]
RNG = np.random.default_rng(0)
TRUE = -4 + np.repeat(RNG.normal(size=4), 6) + RNG.normal(size=LAYERS)


def whole(count: int, seed: int) -> np.ndarray:
    """ln errors of random configurations: 2 to 6 bits a layer."""
    return -1.4 * np.random.default_rng(seed).integers(2, 7, size=(count, LAYERS)).astype(float)


def alone(bits: int = 2) -> np.ndarray:
    return np.where(np.eye(LAYERS, dtype=bool), -1.4 * bits, -np.inf)


def damage(log_errors: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    exact = np.logaddexp.reduce(TRUE + log_errors, axis=1)
    return exact + noise * np.random.default_rng(seed).normal(size=len(exact))


def observed(*parts: tuple[int, np.ndarray], noise: float = 0.0) -> Observations:
    return Observations(
        np.concatenate([e for _, e in parts]),
        np.concatenate([damage(e, noise, i) for i, (_, e) in enumerate(parts)]),
        np.concatenate([np.full(len(e), kind) for kind, e in parts]),
    )


def test_layers_measured_alone_give_their_sensitivities() -> None:
    model = fit_damage(GROUPS, observed((0, alone())))
    assert np.corrcoef(model.log_sensitivity, TRUE)[0, 1] > 0.95


def test_records_of_all_layers_correct_what_layers_alone_say() -> None:
    few = fit_damage(GROUPS, observed((0, alone()), noise=0.8))
    more = fit_damage(GROUPS, observed((0, alone()), (1, whole(150, 1)), noise=0.8))
    assert np.std(more.log_sensitivity - TRUE) < np.std(few.log_sensitivity - TRUE)
    test = whole(100, 9)
    rms = [np.std(m.predict(test)[0] - damage(test)) for m in (few, more)]
    assert rms[1] < 0.9 * rms[0]


def test_the_stated_deviation_is_that_of_the_errors() -> None:
    test, scaled = whole(60, 9), []
    for seed in range(6):
        seen = Observations(whole(60, seed), damage(whole(60, seed), 0.3, seed), np.full(60, 1))
        predicted, deviation = fit_damage(GROUPS, seen).predict(test)
        scaled.append((predicted - damage(test)) / deviation)
    assert 0.5 < np.sqrt(np.mean(np.square(scaled))) < 2


def test_one_observation_is_enough_and_layers_of_its_kind_are_thought_alike() -> None:
    errors = np.full((1, LAYERS), -np.inf)
    errors[0, 0] = -3.0
    model = fit_damage(GROUPS, Observations(errors, np.array([2.0]), np.array([0])))
    assert np.isfinite(model.log_sensitivity).all()
    uncertain = np.sqrt(np.diag(model.layers @ model.covariance @ model.layers.T))
    assert uncertain.argmin() == 0
    assert uncertain[4] < uncertain[10]  # of the same operation and block as layer 0, against of neither


def test_saturated_damage_is_not_taken_for_insensitivity() -> None:
    limit = -5.0

    def ruined(exact: np.ndarray) -> np.ndarray:
        return exact - np.logaddexp(0, exact - limit)

    errors = np.concatenate([alone(), whole(200, 2)])
    kinds = np.repeat([0, 1], [LAYERS, 200])
    model = fit_damage(GROUPS, Observations(errors, ruined(damage(errors)), kinds))
    assert model.mean[-2] == pytest.approx(limit, abs=0.3)
    assert np.corrcoef(model.log_sensitivity, TRUE)[0, 1] > 0.95


def test_drawn_models_scatter_as_the_posterior_says() -> None:
    model = fit_damage(GROUPS, observed((1, whole(40, 3)), noise=0.2))
    rng = np.random.default_rng(0)
    drawn = np.stack([model.draw(rng).log_sensitivity for _ in range(400)])
    expected = np.sqrt(np.diag(model.layers @ model.covariance @ model.layers.T))
    np.testing.assert_allclose(drawn.std(axis=0), expected, rtol=0.2)
    np.testing.assert_allclose(drawn.mean(axis=0), model.log_sensitivity, atol=4 * expected.max() / 20)
