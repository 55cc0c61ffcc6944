"""Sensitivity in units of the objective: what the predictor expects if one layer alone is changed.

A score orders the options of a layer; it has no unit. Here each option of a layer is put into measured configurations,
all other layers left as they are, and the predicted objectives are averaged: ŷ(layer ← option) of each fold.
Differences between options of one layer are what the change costs, in decibels if the objective is a PSNR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.predictor import Encoding, Ensemble

#: For each layer and option, the predicted gain of each fold.
Effects = Mapping[str, Mapping[Option, tuple[float, ...]]]

_CHUNK = 64  # configurations encoded at once


def around(choices: np.ndarray, gain: np.ndarray, count: int = 8) -> np.ndarray:
    """The configurations that layers are changed in: [≤ count, layers], evenly over the better 70 % of the measured.

    The objective is clipped below its 20 % quantile when the predictor is fitted, so that it has nothing to say about
    layers changed in worse ones.
    """
    order = np.argsort(gain, kind="stable")[int(0.3 * len(gain)) :]
    picked = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return choices[order[picked]]


def option_effects(
    space: SearchSpace,
    encoding: Encoding,
    ensemble: Ensemble,
    bases: np.ndarray,
    progress: Callable[[int], object] = lambda layers: None,
) -> Effects:
    """Predicted gain with each option of each layer, mean over ``bases`` [configurations, layers]."""
    found: dict[str, dict[Option, tuple[float, ...]]] = {}
    for i, layer in enumerate(space.layers):
        options = space.options[layer]
        changed = np.repeat(bases, len(options), axis=0)
        changed[:, i] = np.tile(np.arange(len(options)), len(bases))
        parts = [ensemble.predict(encoding, changed[j : j + _CHUNK]) for j in range(0, len(changed), _CHUNK)]
        gain = np.concatenate(parts, axis=1).reshape(len(ensemble.folds), len(bases), len(options)).mean(axis=1)
        found[layer] = {option: tuple(float(v) for v in gain[:, j]) for j, option in enumerate(options)}
        progress(i + 1)
    return found
