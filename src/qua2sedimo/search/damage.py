"""The additive model of damage with its uncertainty: from any measurements, of one layer or of all, to sensitivities.

ln D(c) = ln Σ_l exp(θ_l + γ·ln e_l(c)),   y(c) = ln D − softplus(ln D − κ) + δ·[c is one layer alone] + noise

e_l(c) is layer l's relative quantization error under the configuration (0 where it is not quantized), y the log of
the images' mean squared error, κ where damage saturates: a ruined picture cannot get worse. θ_l = level + operation +
block + layer, each with a normal prior, so that layers that were never looked at closely are judged by their kind.
The maximum of the posterior is found by Gauss-Newton steps, its covariance is that of the linearised model, and every
kind of record (one layer alone, random, near the frontier) has a noise of its own, estimated from its residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

FLOOR = 1e-9  # the relative error of an exact option
_STEPS = 30
#: Prior standard deviations in nepers: of operations, blocks and layers, of the level, of γ, κ and δ.
_GROUP, _LAYER, _LEVEL, _EXPONENT, _LIMIT, _SHIFT = 1.0, 1.5, 5.0, 0.2, 1.0, 1.0
_LEAST_NOISE, _FIRST_NOISE = 0.02, 0.3
#: The noise first assumed counts as much as so many records: layers measured once cannot tell it from their spread.
_ASSUMED = 20


@dataclass(frozen=True)
class Observations:
    """Measured configurations: ln relative error [records, layers], −inf where a layer is not quantized; y [records],
    the log of the images' error; and the kind of each record, an index [records], 0 for one layer alone."""

    log_errors: np.ndarray
    log_damage: np.ndarray
    kind: np.ndarray


@dataclass(frozen=True)
class DamageModel:
    """Most likely parameters and their covariance; ``layers`` [layers, parameters] makes θ of them.

    The last three parameters are γ, κ and δ.
    """

    layers: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    noise: np.ndarray

    @property
    def log_sensitivity(self) -> np.ndarray:
        """θ [layers]."""
        return self.layers @ self.mean

    @property
    def exponent(self) -> float:
        return float(self.mean[-3])

    def draw(self, rng: np.random.Generator, spread: float = 1.0) -> DamageModel:
        """One set of parameters as likely as the measurements leave it; ``spread`` widens the deviations, since where
        errors do not just add, the model is surer of itself than it should be."""
        drawn = rng.multivariate_normal(self.mean, spread**2 * self.covariance, method="eigh")
        drawn[-3] = max(drawn[-3], 0.1)  # more error is never better
        return DamageModel(self.layers, drawn, self.covariance, self.noise)

    def damage(self, log_errors: np.ndarray) -> np.ndarray:
        """exp(θ_l + γ·ln e): what an option adds, for ln errors [..., layers]."""
        return np.exp(self.log_sensitivity + self.exponent * log_errors)

    def predict(self, log_errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(y [records], its standard deviation without noise) for configurations of all layers."""
        y, jacobian = _forward(self.layers, self.mean, log_errors, np.zeros(len(log_errors)))
        return y, np.sqrt(np.maximum(0, np.einsum("ij,jk,ik->i", jacobian, self.covariance, jacobian)))


def fit_damage(groups: Sequence[Sequence[str]], seen: Observations) -> DamageModel:
    """Fit to the observations; ``groups`` names the kinds each layer belongs to, e.g. its operation and its block.

    Each of ``groups`` has one name a layer. Works from a single observation on: what was not seen is as the prior has
    it.
    """
    count = len(groups[0])
    columns = [np.ones((count, 1)), *map(_one_hot, groups), np.eye(count)]
    spread = [_LEVEL, *(_GROUP for _ in groups), _LAYER]
    deviations = np.concatenate([np.full(c.shape[1], s) for c, s in zip(columns, spread)])
    layers = np.concatenate([*columns, np.zeros((count, 3))], axis=1)
    deviations = np.concatenate([deviations, [_EXPONENT, _LIMIT, _SHIFT]])
    start = np.zeros(len(deviations))
    start[-3:] = 1.0, seen.log_damage.max() + 1.0, 0.0
    prior = start.copy()
    prior[0] = start[0] = np.median(seen.log_damage - np.logaddexp.reduce(seen.log_errors, axis=1))
    alone = (seen.kind == 0).astype(float)
    kinds = int(seen.kind.max()) + 1
    noise = np.full(kinds, _FIRST_NOISE)

    mean, precision = start, np.diag(deviations**-2.0)
    for _ in range(_STEPS):
        y, jacobian = _forward(layers, mean, seen.log_errors, alone)
        weight = noise[seen.kind] ** -2.0
        information = precision + (jacobian * weight[:, None]).T @ jacobian
        slope = (jacobian * weight[:, None]).T @ (seen.log_damage - y) - precision @ (mean - prior)
        factor = cho_factor(information)
        step = cho_solve(factor, slope)
        mean = mean + step * min(1.0, 1.0 / max(1e-12, float(np.abs(step).max())))
        leverage = np.einsum("ij,ji->i", jacobian, cho_solve(factor, jacobian.T)) * weight
        noise = _noise(seen, y, leverage, noise)
        if np.abs(step).max() < 1e-3:
            break
    return DamageModel(layers, mean, cho_solve(factor, np.eye(len(mean))), noise)


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
    layers: np.ndarray, parameters: np.ndarray, log_errors: np.ndarray, alone: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(y [records], its derivative by the parameters)."""
    exponent, limit, shift = parameters[-3:]
    finite = np.where(np.isfinite(log_errors), log_errors, 0.0)
    terms = np.where(np.isfinite(log_errors), layers @ parameters + exponent * finite, -np.inf)
    total = np.logaddexp.reduce(terms, axis=1)
    share = np.exp(terms - total[:, None])
    saturated = 1 / (1 + np.exp(-(total - limit)))
    y = total - np.logaddexp(0, total - limit) + shift * alone
    jacobian = share @ layers
    jacobian[:, -3] = (share * finite).sum(axis=1)
    jacobian *= (1 - saturated)[:, None]
    jacobian[:, -2], jacobian[:, -1] = saturated, alone
    return y, jacobian


def _one_hot(names: Sequence[str]) -> np.ndarray:
    distinct = list(dict.fromkeys(names))
    return np.array([[name == other for other in distinct] for name in names], dtype=float)
