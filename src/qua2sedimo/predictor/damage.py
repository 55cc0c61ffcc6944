"""Where the network starts: each option's damage as an exponential of its features, fitted to whole configurations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

_STEPS, _CLOSE = 20, 1e-5
#: Variances of what is left unexplained that are tried, relative to the target's; the more probable one is taken.
_NOISES = (0.2, 0.05)
#: Variance, in squared natural logarithms, of what a layer's damage alone says of its damage among others.
_NOISE_ALONE = 0.3
#: Prior standard deviations: of what is an option's own, of what all layers alone have in common, since images were
#: others there, and of the limit, which is expected one above the largest target.
_OWN, _LEVEL_ALONE, _LIMIT = 0.4, 1.0, 1.0


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
class Damages:
    """Damage of every option, d = exp(w·x + v).

    ``weights``: w [features]; ``own``: v [layers, options]; ``limit``: where the sum of damages saturates;
    ``left_out``: for each record what a fit without it would have predicted [records].
    """

    weights: np.ndarray
    own: np.ndarray
    limit: float
    left_out: np.ndarray

    def logarithms(self, features: np.ndarray) -> np.ndarray:
        """ln d of features [layers, options, features]: [layers, options]."""
        return features @ self.weights + self.own

    def predicted(self, features: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """s(ln Σ d) of option indices [records, layers]: [records]."""
        rows = np.arange(len(self.own))
        total = np.logaddexp.reduce(self.logarithms(features)[rows, choices], axis=1)
        return total - np.logaddexp(0, total - self.limit)


@dataclass(frozen=True, eq=False)
class _Fit:
    """All parameters; left-out predictions [records]; logarithm of the evidence."""

    parameters: np.ndarray
    left_out: np.ndarray
    evidence: float


def fit_damage(
    features: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    choices: np.ndarray,
    target: np.ndarray,
    alone: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Damages:
    """The damages that are most probable given what was measured.

    A record says s(ln Σ_layers exp(w·x + v)) = target + noise, s(t) = t − softplus(t − limit); beforehand
    w ~ N(mean, deviation²), and v, what is an option's own beside its features, N(0, 0.4²): errors of one size
    point in different directions, and some hurt more. A layer alone says s(w·x + v) + level = target + noise.

    Squared errors of independent sources add, so the logarithm of an image's error is the logarithm of a sum of
    damages, one a layer; but a ruined image gets no worse, which is what the limit is for. Solved by Gauss and
    Newton's method in the space of records, with a line search: about ten steps of records² · parameters operations.
    The noise of the records is the one of a few under which they are most probable (the evidence in Laplace's
    approximation): the fewer records, the less is known of it beforehand. Column 1 of the features is the level: its
    prior mean is set to fit the mean of the target.

    Shapes:
        features: [layers, options, features]; mean, deviation: [features]; choices: [records, layers];
        target: [records], natural logarithms of image errors; alone: (layers [n], options [n], target [n]).
    """
    nothing = np.empty(0, dtype=int)
    problem = _Problem(features, mean, deviation, choices, target, *(alone or (nothing, nothing, np.empty(0))))
    best, parameters = None, problem.mean
    for noise in _NOISES:
        found = problem.solve(parameters, noise * float(target.var()) + 1e-6)
        parameters = found.parameters
        if best is None or found.evidence > best.evidence:
            best = found
    assert best is not None
    weights, own = problem.parts(best.parameters)
    return Damages(weights, own, float(best.parameters[-1]), best.left_out)


class _Problem:
    """What is observed: records, each the log of a sum of damages, then layers alone, each the log of one.

    Parameters are w, v of every option, the level of layers alone, and the limit.
    """

    def __init__(
        self, features: np.ndarray, mean: np.ndarray, deviation: np.ndarray, choices: np.ndarray, target: np.ndarray,
        layers: np.ndarray, options: np.ndarray, target_alone: np.ndarray,
    ) -> None:  # fmt: skip
        self.features, self.choices, self.alone = features, choices, (layers, options)
        self.rows = np.arange(features.shape[0])
        self.target, self.records = np.concatenate([target, target_alone]), len(target)
        own = np.zeros(features.shape[:2])
        self.mean = np.concatenate([mean, own.ravel(), [0.0, float(target.max()) + 1.0]])
        self.variance = np.concatenate([deviation, own.ravel() + _OWN, [_LEVEL_ALONE, _LIMIT]]) ** 2
        total = np.logaddexp.reduce((features @ mean)[self.rows, choices], axis=1)
        self.mean[1] += (target - total).mean()

    def parts(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(w [features], v [layers, options])."""
        layers, options, width = self.features.shape
        return parameters[:width], parameters[width:-2].reshape(layers, options)

    def predicted(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(what the parameters say of everything observed, each layer's share of a record's damage [records, layers],
        how far what is observed is saturated, 0 to 1)."""
        weights, own = self.parts(parameters)
        logarithms = np.clip(self.features @ weights + own, -60, 60)
        terms = logarithms[self.rows, self.choices]
        sums = np.logaddexp.reduce(terms, axis=1)
        total = np.concatenate([sums, logarithms[self.alone]])
        found = total - np.logaddexp(0, total - parameters[-1])
        found[self.records :] += parameters[-2]
        return found, np.exp(terms - sums[:, None]), expit(total - parameters[-1])

    def slopes(self, share: np.ndarray, saturated: np.ndarray) -> np.ndarray:
        """Derivatives of what is observed by the parameters."""
        width = self.features.shape[2]
        number = width + np.arange(self.features[..., 0].size).reshape(self.features.shape[:2])
        slope = np.zeros((len(self.target), len(self.mean)))
        records, alone = slope[: self.records], slope[self.records :]
        for layer in self.rows:  # one at a time: all at once would take records × layers × features
            records[:, :width] += share[:, [layer]] * self.features[layer, self.choices[:, layer]]
        records[np.arange(len(share))[:, None], number[self.rows, self.choices]] = share
        alone[:, :width] = self.features[self.alone]
        alone[np.arange(len(alone)), number[self.alone]] = 1.0
        slope *= 1 - saturated[:, None]
        alone[:, -2], slope[:, -1] = 1.0, saturated
        return slope

    def solve(self, parameters: np.ndarray, noise: float) -> _Fit:
        """The most probable parameters, searched from ``parameters`` on."""
        noises = np.full(len(self.target), _NOISE_ALONE)
        noises[: self.records] = noise

        def objective(parameters: np.ndarray, found: np.ndarray) -> float:
            off = ((parameters - self.mean) ** 2 / self.variance).sum()
            return float(((self.target - found) ** 2 / noises).sum() + off)

        found, *around = self.predicted(parameters)
        value = objective(parameters, found)
        for _ in range(_STEPS):
            slope = self.slopes(*around)
            kernel = slope * self.variance
            left = self.target - found + slope @ (parameters - self.mean)
            step = self.mean + kernel.T @ np.linalg.solve(kernel @ slope.T + np.diag(noises), left) - parameters
            length = 1.0
            while length > 1e-3:
                candidate = parameters + length * step
                found_there, *around_there = self.predicted(candidate)
                value_there = objective(candidate, found_there)
                if value_there < value:
                    break
                length /= 2
            else:
                break
            gain, value = value - value_there, value_there
            parameters, found, around = candidate, found_there, around_there
            if gain < _CLOSE * value:
                break
        slope = self.slopes(*around)
        covariance = (slope * self.variance) @ slope.T + np.diag(noises)
        left = self.target - found + slope @ (parameters - self.mean)
        inverse = np.linalg.inv(covariance)
        explained = inverse @ left
        evidence = -(left @ explained + np.linalg.slogdet(covariance)[1]) / 2
        left_out = (self.target - explained / np.diag(inverse))[: self.records]
        return _Fit(parameters, left_out, float(evidence))
