"""A made-up network of layers whose sensitivities are known, and what measuring it would say."""

from __future__ import annotations

import numpy as np

from qua2sedimo.damage import ALONE, DamageModel, Features, Observations

LAYERS, BITS = 24, np.arange(2, 7)
RNG = np.random.default_rng(0)
TRUE = -4 + np.repeat(RNG.normal(size=4), 6) + RNG.normal(size=LAYERS)


def features(own: float = 0.0, layers: int = LAYERS, options: int = len(BITS)) -> Features:
    """ln error, −1.4 a bit; the level; which of four operations, of blocks of six layers, and which layer it is."""
    errors = np.broadcast_to(-1.4 * BITS[:options], (layers, options))[..., None]
    columns = [errors, np.ones_like(errors)]
    groups, start = {"error": slice(0, 1), "level": slice(1, 2)}, 2
    place = np.arange(layers)
    for name, kinds in {"operation": place % 4, "block": place // 6, "layer": place}.items():
        one_hot = np.eye(max(kinds) + 1)[kinds]
        columns.append(np.broadcast_to(one_hot[:, None], (layers, options, one_hot.shape[1])))
        groups[name], start = slice(start, start + one_hot.shape[1]), start + one_hot.shape[1]
    mean, deviation = np.zeros(start), np.ones(start)
    mean[0], deviation[:2] = 1.0, (0.2, 5.0)
    return Features(
        np.concatenate(columns, axis=2), np.ones((layers, options), dtype=bool), groups, mean, deviation, own
    )


FEATURES = features()


def sensitivity(model: DamageModel) -> np.ndarray:
    """ln sensitivity of each layer, the error's part taken off."""
    return model.log_damage[:, 0] - model.weights[0] * FEATURES.values[0, 0, 0]


def whole(count: int, seed: int) -> np.ndarray:
    """Random configurations: 2 to 6 bits a layer."""
    return np.random.default_rng(seed).integers(len(BITS), size=(count, LAYERS))


def alone(layers: int = LAYERS) -> np.ndarray:
    """Each layer alone at 2 bits."""
    return np.where(np.eye(layers, dtype=bool), 0, -1)


def damage(choices: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    exact = np.logaddexp.reduce(np.where(choices >= 0, TRUE - 1.4 * BITS[choices], -np.inf), axis=1)
    return exact + noise * np.random.default_rng(seed).normal(size=len(exact))


def seen(
    choices: np.ndarray, log_error: np.ndarray, kind: np.ndarray, images: np.ndarray | None = None
) -> Observations:
    return Observations(choices, log_error, kind, np.zeros(len(kind), dtype=int) if images is None else images)


def observed(*parts: tuple[int, np.ndarray], noise: float = 0.0) -> Observations:
    """Parts are (kind, choices)."""
    return seen(
        np.concatenate([choices for _, choices in parts]),
        np.concatenate([damage(choices, noise, i) for i, (_, choices) in enumerate(parts)]),
        np.concatenate([np.full(len(choices), kind) for kind, choices in parts]),
    )


NOTHING = seen(alone()[:0], np.empty(0), np.empty(0, dtype=int))
assert ALONE == 0
