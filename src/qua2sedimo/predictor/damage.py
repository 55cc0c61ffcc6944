"""Where the network starts: each option's damage as an exponential of its features, fitted to whole configurations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STEPS, _CLOSE = 20, 1e-5
#: Variances of what is left unexplained that are tried, relative to the target's; the most probable one is taken.
_NOISES = (0.2, 0.1, 0.05, 0.02, 0.01)
#: Variance, in squared natural logarithms, of what a layer's damage alone says of its damage among others.
_NOISE_ALONE = 0.7
#: Prior standard deviation of what all layers alone have in common: where damage saturates, or images were others.
_LEVEL_ALONE = 1.0


@dataclass(frozen=True, eq=False)
class Alone:
    """Layers quantized alone, all others at full precision.

    Shapes:
        layers, options: int [n], positions in the search space; objective: [n], higher is better.
    """

    layers: np.ndarray
    options: np.ndarray
    objective: np.ndarray


@dataclass(frozen=True, eq=False)
class _Fit:
    """Weights, the last one the level of layers alone; left-out predictions [records]; logarithm of the evidence."""

    weights: np.ndarray
    left_out: np.ndarray
    evidence: float


def fit_damage(
    features: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    choices: np.ndarray,
    target: np.ndarray,
    alone: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(w [features], predictions [records], each as if its record had not been fitted).

    w are the weights most probable under ln Σ_layers exp(w·x) = target + noise and w ~ N(mean, deviation²). What was
    measured of single layers says w·x + level = target + noise, linear in w, so that it sharpens the prior.

    Squared errors of independent sources add, so the logarithm of an image's error is the logarithm of a sum of
    damages, one a layer. Solved by Gauss and Newton's method in the space of records, with a line search: about ten
    steps of records² · features operations. The noise of the records is the one of a few under which they are most
    probable (the evidence in Laplace's approximation): the fewer records, the less is known of it beforehand. Column 1
    of the features is the level: its prior mean is set to fit the mean of the target.

    Shapes:
        features: [layers, options, features]; mean, deviation: [features]; choices: [records, layers];
        target: [records], natural logarithms of image errors; alone: (x [n, features], target [n]).
    """
    offset = np.zeros((*features.shape[:2], 1))
    problem = _Problem(
        np.concatenate([features, offset], axis=2), np.append(mean, 0.0), np.append(deviation, _LEVEL_ALONE) ** 2,
        choices, target, *(alone or (np.empty((0, features.shape[2])), np.empty(0))),
    )  # fmt: skip
    best, weights = None, problem.mean
    for noise in _NOISES:
        found = problem.solve(weights, noise * float(target.var()) + 1e-6)
        weights = found.weights
        if best is None or found.evidence > best.evidence:
            best = found
    assert best is not None
    return best.weights[:-1], best.left_out


class _Problem:
    """What is observed: records, each the log of a sum of damages, then layers alone, each the log of one."""

    def __init__(
        self, features: np.ndarray, mean: np.ndarray, variance: np.ndarray, choices: np.ndarray, target: np.ndarray,
        alone: np.ndarray, target_alone: np.ndarray,
    ) -> None:  # fmt: skip
        self.features, self.choices, self.variance = features, choices, variance
        self.rows = np.arange(features.shape[0])
        self.alone = np.concatenate([alone, np.ones((len(alone), 1))], axis=1)
        self.target, self.records = np.concatenate([target, target_alone]), len(target)
        self.mean = mean.astype(np.float64).copy()
        self.mean[1] += (target - self.predicted(self.mean)[0][: self.records]).mean()

    def predicted(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(what the weights say of everything observed, each layer's share of a record's damage [records, layers])."""
        terms = np.clip(self.features @ weights, -60, 60)[self.rows, self.choices]
        total = np.logaddexp.reduce(terms, axis=1)
        return np.concatenate([total, self.alone @ weights]), np.exp(terms - total[:, None])

    def slopes(self, share: np.ndarray) -> np.ndarray:
        """Derivatives of what is observed by the weights."""
        slope = np.zeros((len(share), self.features.shape[2]))
        for layer in self.rows:  # one at a time: all at once would take records × layers × features
            slope += share[:, [layer]] * self.features[layer, self.choices[:, layer]]
        return np.concatenate([slope, self.alone])

    def solve(self, weights: np.ndarray, noise: float) -> _Fit:
        """The most probable weights, searched from ``weights`` on."""
        noises = np.full(len(self.target), _NOISE_ALONE)
        noises[: self.records] = noise

        def objective(weights: np.ndarray, found: np.ndarray) -> float:
            off = ((weights - self.mean) ** 2 / self.variance).sum()
            return float(((self.target - found) ** 2 / noises).sum() + off)

        found, share = self.predicted(weights)
        value = objective(weights, found)
        for _ in range(_STEPS):
            slope = self.slopes(share)
            kernel = slope * self.variance
            left = self.target - found + slope @ (weights - self.mean)
            step = self.mean + kernel.T @ np.linalg.solve(kernel @ slope.T + np.diag(noises), left) - weights
            length = 1.0
            while length > 1e-3:
                candidate = weights + length * step
                found_there, share_there = self.predicted(candidate)
                value_there = objective(candidate, found_there)
                if value_there < value:
                    break
                length /= 2
            else:
                break
            gain, weights, found, share, value = value - value_there, candidate, found_there, share_there, value_there
            if gain < _CLOSE * value:
                break
        slope = self.slopes(share)
        covariance = (slope * self.variance) @ slope.T + np.diag(noises)
        left = self.target - found + slope @ (weights - self.mean)
        inverse = np.linalg.inv(covariance)
        explained = inverse @ left
        evidence = -(left @ explained + np.linalg.slogdet(covariance)[1]) / 2
        left_out = (self.target - explained / np.diag(inverse))[: self.records]
        return _Fit(weights, left_out, float(evidence))
