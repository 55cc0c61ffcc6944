"""Where the network starts: each option's damage as an exponential of its features, fitted to whole configurations."""

from __future__ import annotations

import numpy as np

_STEPS, _CLOSE = 20, 1e-5
#: Prior variance of what is left unexplained, relative to the target's.
_NOISE = 0.02


def fit_damage(
    features: np.ndarray, mean: np.ndarray, deviation: np.ndarray, choices: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(w [features], predictions [records], each as if its record had not been fitted).

    w are the weights w [features] most probable under ln Σ_layers exp(w·x) = target and w ~ N(mean, deviation²).

    Squared errors of independent sources add, so the logarithm of an image's error is the logarithm of a sum of
    damages, one a layer. Solved by Gauss and Newton's method in the space of records, with a line search: about ten
    steps of records² · features operations. Column 1 of the features is the level: its prior mean is set to fit the
    mean of the target.

    Shapes:
        features: [layers, options, features]; mean, deviation: [features]; choices: [records, layers];
        target: [records], natural logarithms of image errors.
    """
    rows = np.arange(features.shape[0])
    mean, variance = mean.astype(np.float64).copy(), deviation.astype(np.float64) ** 2
    noise = _NOISE * float(target.var()) + 1e-6

    def logarithm(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = np.clip(features @ weights, -60, 60)[rows, choices]
        total = np.logaddexp.reduce(terms, axis=1)
        return total, np.exp(terms - total[:, None])

    def objective(weights: np.ndarray, total: np.ndarray) -> float:
        return float(((target - total) ** 2).sum() / noise + ((weights - mean) ** 2 / variance).sum())

    mean[1] += (target - logarithm(mean)[0]).mean()
    weights = mean.copy()
    total, share = logarithm(weights)
    value = objective(weights, total)
    for _ in range(_STEPS):
        slope = _slopes(features, choices, share)
        kernel = slope * variance
        left = target - total + slope @ (weights - mean)
        step = mean + kernel.T @ np.linalg.solve(kernel @ slope.T + noise * np.eye(len(target)), left) - weights
        length = 1.0
        while length > 1e-3:
            candidate = weights + length * step
            total_there, share_there = logarithm(candidate)
            value_there = objective(candidate, total_there)
            if value_there < value:
                break
            length /= 2
        else:
            break
        gain, weights, total, share, value = value - value_there, candidate, total_there, share_there, value_there
        if gain < _CLOSE * value:
            break
    slope = _slopes(features, choices, share)
    kernel = (slope * variance) @ slope.T
    left_out = (target - total) / (1 - np.diag(np.linalg.solve(kernel + noise * np.eye(len(target)), kernel)))
    return weights, target - left_out


def _slopes(features: np.ndarray, choices: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Derivatives of each record's logarithm by the weights, [records, features], from its layers' shares of damage."""
    slope = np.zeros((len(choices), features.shape[2]))
    for layer in range(features.shape[0]):  # one at a time: all at once would take records × layers × features
        slope += share[:, [layer]] * features[layer, choices[:, layer]]
    return slope
