"""The additive model of damage with its uncertainty: from any measurements, of one layer or all, to what options cost.

ln D(c) = ln Σ_l exp(w·x(l, c_l)),   y(c) = ln D − softplus(ln D − κ) + δ·[c is one layer alone] + ε_images + noise

x(l, o) are the features of option o of layer l, the predictor's own: log relative error, size, depth, method,
operation, block, the layer itself; w has their normal prior, so that layers that were never looked at closely are
judged by their kind. A layer in 16 bits adds nothing. y is the log of the images' mean squared error, κ where damage
saturates: a ruined picture cannot get worse; ε what images measured together have in common: some pictures are harder
than others. The maximum of the posterior is found by Gauss-Newton steps, its covariance is that of the linearised
model, and every kind of record (one layer alone, random, near the frontier) has a noise of its own, estimated from its
residuals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve

_STEPS, _CLOSE = 30, 1e-3
_ROUNDS, _SETTLED = 8, 0.05
#: Prior standard deviations in nepers: of κ, of δ, and of what images have in common.
_LIMIT, _SHIFT, _IMAGES = 1.0, 1.0, 0.4
_UNREACHED = 1e3  # a κ at which nothing saturates
_LEAST_NOISE, _FIRST_NOISE = 0.02, 0.3
#: The noise first assumed counts as much as so many records: layers measured once cannot tell it from their spread.
_ASSUMED = 20


@dataclass(frozen=True, eq=False)
class Features:
    """Features of every option of every layer and the prior of their weights.

    Shapes:
        values: [layers, options, features], padded where ``offered`` [layers, options] is not; mean, deviation:
        [features], of a normal prior. Column 0 grows with the option's error, column 1 is the level, 1 everywhere.
    """

    values: np.ndarray
    offered: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @cached_property
    def columns(self) -> list[np.ndarray]:
        """Which features each layer has at all: most are those of other layers."""
        return [np.flatnonzero(of.any(axis=0)) for of in self.values]


@dataclass(frozen=True, eq=False)
class Observations:
    """Measured configurations.

    Shapes:
        choices: int [records, layers], the option of each layer, −1 where it is in 16 bits; log_damage: [records], the
        log of the images' error; kind: int [records], 0 for one layer alone; images: int [records], which images.
    """

    choices: np.ndarray
    log_damage: np.ndarray
    kind: np.ndarray
    images: np.ndarray


@dataclass(frozen=True, eq=False)
class DamageModel:
    """The weights w, most likely or drawn [features], and what the fit left of κ and δ.

    ``mean``, ``covariance`` are of all parameters: w, ε of each set of images, κ, δ. ``noise``: standard deviation of
    each kind of record, in nepers.
    """

    features: Features
    mean: np.ndarray
    covariance: np.ndarray
    noise: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        return self.mean[: len(self.features.mean)]

    @cached_property
    def log_damage(self) -> np.ndarray:
        """w·x, the log of what each option adds: [layers, options]."""
        return self.features.values @ self.weights

    @property
    def limit(self) -> float:
        """κ."""
        return float(self.mean[-2])

    def draw(self, rng: np.random.Generator, spread: float = 1.0) -> DamageModel:
        """One set of parameters as likely as the measurements leave it; ``spread`` widens the deviations, since where
        errors do not just add, the model is surer of itself than it should be."""
        drawn = rng.multivariate_normal(self.mean, spread**2 * self.covariance, method="eigh")
        drawn[0] = max(drawn[0], 0.1)  # more error is never better
        return DamageModel(self.features, drawn, self.covariance, self.noise)

    def predict(self, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(y [records], its standard deviation without noise) for choices [records, layers], on images like others."""
        nothing = np.zeros(len(choices))
        y, jacobian = _forward(self.features, self.mean, choices, nothing, nothing.astype(int) - 1)
        return y, np.sqrt(np.maximum(0, np.einsum("ij,jk,ik->i", jacobian, self.covariance, jacobian)))


def prior_damage(features: Features) -> DamageModel:
    """What is believed before anything was measured."""
    deviation = np.concatenate([features.deviation, [0.0, 0.0]])
    deviation[1] = 0.0  # the level of all options alike decides nothing
    mean = np.concatenate([features.mean, [_UNREACHED, 0.0]])
    return DamageModel(features, mean, np.diag(deviation**2), np.array([]))


def fit_damage(features: Features, seen: Observations) -> DamageModel:
    """Fit to the observations. Works from a single one on: what was not seen is as the prior has it."""
    sets = int(seen.images.max()) + 1
    limit = seen.log_damage.max() + 1.0
    prior = np.concatenate([features.mean, np.zeros(sets), [limit, 0.0]])
    deviations = np.concatenate([features.deviation, np.full(sets, _IMAGES), [_LIMIT, _SHIFT]])
    alone = (seen.kind == 0).astype(float)
    unsaturated = np.append(prior[:-2], [_UNREACHED, 0.0])
    prior[1] += np.median(seen.log_damage - _forward(features, unsaturated, seen.choices, alone, seen.images)[0])
    noise = np.full(int(seen.kind.max()) + 1, _FIRST_NOISE)

    mean, precision = prior.copy(), np.diag(deviations**-2.0)
    for _ in range(_ROUNDS):
        # The noise is estimated where the weights have settled: before, all that they have yet to learn would be noise.
        for _ in range(_STEPS):
            y, jacobian = _forward(features, mean, seen.choices, alone, seen.images)
            weight = noise[seen.kind] ** -2.0
            information = precision + (jacobian * weight[:, None]).T @ jacobian
            slope = (jacobian * weight[:, None]).T @ (seen.log_damage - y) - precision @ (mean - prior)
            factor = cho_factor(information)
            step = cho_solve(factor, slope)
            size = float(np.abs(step).max())
            mean = mean + step * min(1.0, 1.0 / max(1e-12, size))
            if size < _CLOSE:
                break
        leverage = np.einsum("ij,ji->i", jacobian, cho_solve(factor, jacobian.T)) * weight
        before, noise = noise, _noise(seen, y, leverage, noise)
        if np.abs(np.log(noise / before)).max() < _SETTLED:
            break
    return DamageModel(features, mean, cho_solve(factor, np.eye(len(mean))), noise)


def _noise(seen: Observations, predicted: np.ndarray, leverage: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Standard deviation of each kind's residuals, what the parameters took up given back."""
    noise = before.copy()
    for kind in range(len(before)):
        of = seen.kind == kind
        free = float((1 - leverage[of]).sum()) if of.any() else 0.0
        if of.any():
            squares = float(((seen.log_damage - predicted)[of] ** 2).sum())
            noise[kind] = np.sqrt((squares + _ASSUMED * _FIRST_NOISE**2) / (max(free, 0.0) + _ASSUMED))
    return np.maximum(noise, _LEAST_NOISE)


def _forward(
    features: Features, parameters: np.ndarray, choices: np.ndarray, alone: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(y [records], its derivative by the parameters); images −1 are like others."""
    count, (limit, shift) = len(features.mean), parameters[-2:]
    layers, chosen = np.arange(choices.shape[1]), np.maximum(choices, 0)
    terms = np.where(choices >= 0, (features.values @ parameters[:count])[layers, chosen], -np.inf)
    total = np.logaddexp.reduce(terms, axis=1)
    share = np.exp(terms - total[:, None])
    jacobian = np.zeros((len(choices), len(parameters)))
    for layer, columns in enumerate(features.columns):
        jacobian[:, columns] += share[:, [layer]] * features.values[layer][np.ix_(chosen[:, layer], columns)]
    saturated = 1 / (1 + np.exp(np.clip(limit - total, -500, 500)))
    jacobian *= (1 - saturated)[:, None]
    y = total - np.logaddexp(0, total - limit) + shift * alone
    known = np.flatnonzero(images >= 0)
    y[known] += parameters[count + images[known]]
    jacobian[known, count + images[known]] = 1.0
    jacobian[:, -2], jacobian[:, -1] = saturated, alone
    return y, jacobian
