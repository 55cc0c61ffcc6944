"""The fit, its draws and its left-out predictions against slow and plain computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize
from scipy.stats import multivariate_normal
from tests.damage.made_up import alone, features, seen

from qua2sedimo.damage import DamageModel, Features, Observations, fit_damage

LAYERS, OPTIONS, SETS = 5, 3, 2


def small(own: float, seed: int = 0, records: int = 14) -> tuple[Features, Observations]:
    """Layers alone and random records of two sets of images, noisy, some of them saturated."""
    rng = np.random.default_rng(seed)
    known = features(own, LAYERS, OPTIONS)
    choices = np.concatenate([alone(LAYERS), rng.integers(OPTIONS, size=(records, LAYERS))])
    table = known.values @ rng.normal(size=known.mean.size) + rng.normal(scale=0.3, size=(LAYERS, OPTIONS))
    total = np.logaddexp.reduce(np.where(choices < 0, -np.inf, table[np.arange(LAYERS), choices]), axis=1)
    limit = np.quantile(total, 0.9)
    y = total - np.logaddexp(0, total - limit) + rng.normal(scale=0.3, size=len(total))
    kind = np.repeat([0, 1], [LAYERS, records])
    return known, seen(choices, y, kind, np.arange(len(kind)) % SETS)


class Dense:
    """The same model written down record by record, its parameters w, κ, δ, ε, v in one vector."""

    def __init__(self, known: Features, records: Observations) -> None:
        self.known, self.records, width = known, records, known.mean.size
        self.parts = np.split(np.arange(width + 2 + SETS + LAYERS * OPTIONS), np.cumsum([width, 1, 1, SETS]))
        own = np.zeros(LAYERS * OPTIONS)
        self.mean = np.concatenate([known.mean, [records.log_error.max() + 1, 0], np.zeros(SETS), own])
        self.deviation = np.concatenate([known.deviation, [1, 1], np.full(SETS, 0.4), own + max(known.own, 1e-9)])
        unsaturated = self.mean.copy()
        unsaturated[width] = 1e3
        self.mean[1] += np.median(records.log_error - self.y(unsaturated))

    def table(self, parameters: np.ndarray) -> np.ndarray:
        w, _, _, _, v = (parameters[part] for part in self.parts)
        return self.known.values @ w + v.reshape(LAYERS, OPTIONS)

    def y(self, parameters: np.ndarray) -> np.ndarray:
        _, limit, shift, images, _ = (parameters[part] for part in self.parts)
        table, found = self.table(parameters), []
        for choice, kind, of in zip(self.records.choices, self.records.kind, self.records.images):
            total = np.log(sum(np.exp(table[i, o]) for i, o in enumerate(choice) if o >= 0))
            found.append(total - np.log1p(np.exp(total - limit[0])) + shift[0] * (kind == 0) + images[of])
        return np.array(found)

    def most_likely(self, noise: np.ndarray) -> np.ndarray:
        """By a general optimiser, in units of the prior's deviations."""

        def loss(scaled: np.ndarray) -> float:
            return self.loss(self.mean + scaled * self.deviation, noise)

        return np.asarray(self.mean + minimize(loss, np.zeros(len(self.mean)), tol=1e-9).x * self.deviation)

    def loss(self, parameters: np.ndarray, noise: np.ndarray) -> float:
        """Minus twice the log of the posterior's density, but for a constant."""
        residual, off = self.records.log_error - self.y(parameters), parameters - self.mean
        return float(((residual / noise) ** 2).sum() + ((off / self.deviation) ** 2).sum())

    def jacobian(self, parameters: np.ndarray) -> np.ndarray:
        return np.asarray(approx_fprime(parameters, self.y, 1e-6))

    def posterior(self, parameters: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, covariance) of the model linearised at ``parameters``, of the records whose noise is finite."""
        jacobian = self.jacobian(parameters)
        covariance = np.linalg.inv(np.diag(self.deviation**-2.0) + (jacobian.T / noise**2) @ jacobian)
        left = self.records.log_error - self.y(parameters) + jacobian @ (parameters - self.mean)
        return self.mean + covariance @ ((jacobian.T / noise**2) @ left), covariance


Fitted = tuple[DamageModel, Dense, np.ndarray, np.ndarray]


@pytest.fixture(scope="module", params=[0.0, 0.4], ids=["no own effects", "own effects"])
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """(model, the same written down plainly, its most likely parameters, noise of each record)."""
    known, records = small(request.param)
    model = fit_damage(known, records)
    dense, noise = Dense(model.features, records), model.noise[records.kind]
    return model, dense, dense.most_likely(noise), noise


def test_the_fit_is_the_optimum_that_a_general_optimiser_finds(fitted: Fitted) -> None:
    model, dense, optimum, _ = fitted
    np.testing.assert_allclose(model.log_damage, dense.table(optimum), atol=0.02)
    assert model.limit == pytest.approx(optimum[dense.parts[1][0]], abs=0.02)


def test_predictions_are_the_saturated_sum_without_images_or_levels_of_layers_alone(fitted: Fitted) -> None:
    model, dense, optimum, _ = fitted
    like_others = optimum.copy()
    like_others[np.concatenate(dense.parts[2:4])] = 0.0
    np.testing.assert_allclose(model.predict(dense.records.choices), dense.y(like_others), atol=0.02)


def test_drawn_models_have_the_mean_and_covariance_of_the_laplace_approximation(fitted: Fitted) -> None:
    model, dense, optimum, noise = fitted
    rng = np.random.default_rng(0)
    drawn = np.stack([model.draw(rng).log_damage.ravel() for _ in range(6000)])
    basis = approx_fprime(optimum, lambda p: dense.table(p).ravel(), 1e-6)
    expected = basis @ dense.posterior(optimum, noise)[1] @ basis.T
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(drawn.mean(axis=0), model.log_damage.ravel(), atol=float(4 * scale.max() / 6000**0.5))
    np.testing.assert_allclose(np.cov(drawn.T) / np.outer(scale, scale), expected / np.outer(scale, scale), atol=0.08)


def test_a_spread_of_three_draws_three_times_as_far_from_the_mean(fitted: Fitted) -> None:
    model = fitted[0]
    near, far = (model.draw(np.random.default_rng(3), spread).log_damage for spread in (0.1, 0.3))
    np.testing.assert_allclose(far - model.log_damage, 3 * (near - model.log_damage), atol=1e-9)


def test_left_out_predictions_are_those_of_the_linearised_model_without_the_record(fitted: Fitted) -> None:
    model, dense, optimum, noise = fitted
    jacobian, y = dense.jacobian(optimum), dense.y(optimum)
    for i in range(len(y)):
        without = noise.copy()
        without[i] = 1e6
        mean, _ = dense.posterior(optimum, without)
        assert model.left_out[i] == pytest.approx(y[i] + jacobian[i] @ (mean - optimum), abs=0.03)


def test_noise_is_where_squared_residuals_are_what_free_records_would_have(fitted: Fitted) -> None:
    """σ²·(free + 20) = Σ residual² + 20·σ₀²: the evidence is stationary there, with 20 assumed records of σ₀, which is
    at most half of what these records differ by."""
    model, dense, optimum, noise = fitted
    jacobian, covariance = dense.jacobian(optimum), dense.posterior(optimum, noise)[1]
    taken = np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian) / noise**2
    residual = dense.records.log_error - dense.y(optimum)
    for kind, assumed in enumerate((0.55, 0.3)):
        of = dense.records.kind == kind
        assumed = min(assumed, dense.records.log_error[of].std() / 2)
        expected = ((residual[of] ** 2).sum() + 20 * assumed**2) / ((1 - taken[of]).sum() + 20)
        assert model.noise[kind] == pytest.approx(expected**0.5, rel=0.06)


def test_the_evidence_is_the_density_of_the_records_under_the_linearised_model(fitted: Fitted) -> None:
    model, dense, optimum, noise = fitted
    jacobian, records = dense.jacobian(optimum), dense.records.log_error
    mean = dense.y(optimum) + jacobian @ (dense.mean - optimum)
    covariance = (jacobian * dense.deviation**2) @ jacobian.T + np.diag(noise**2)
    expected = multivariate_normal(mean, covariance).logpdf(records) + len(records) / 2 * np.log(2 * np.pi)
    assert model.log_evidence == pytest.approx(expected, abs=0.3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), records=st.integers(1, 12), own=st.sampled_from([0.0, 0.4]))
def test_of_any_few_records_no_parameters_nearby_are_more_likely(seed: int, records: int, own: float) -> None:
    known, observations = small(own, seed, records)
    model = fit_damage(known, observations)
    dense = Dense(model.features, observations)  # with the prior that is likeliest
    noise, rng = model.noise[observations.kind], np.random.default_rng(seed)
    least = dense.loss(model.parameters, noise)
    for size in (0.1, 0.3, 1.0):
        steps = size * dense.deviation * rng.normal(size=(10, len(dense.mean)))
        assert min(dense.loss(model.parameters + step, noise) for step in steps) > least * (1 - 1e-4)
