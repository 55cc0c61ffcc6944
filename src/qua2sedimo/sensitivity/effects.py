"""Sensitivity in units of the objective: what changing one layer alone is expected to cost.

A score orders options and has no unit. The predictor's damages have one, since ŷ = offset − slope·s(ln Σ d) is the
objective; what the readout adds to it is left out, for it mixes layers. Each option of a layer is put into measured
configurations, all other layers left as they are. The damages of a fold were fitted to all records outside its test
part; those of the test part say by least squares what a unit of ŷ is worth in the objective.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.predictor import Encoding, Ensemble, HopNetwork

#: For each layer and option, the expected gain of each fold that ranks at all; its level has no meaning.
Effects = Mapping[str, Mapping[Option, tuple[float, ...]]]


@torch.no_grad()
def option_effects(
    space: SearchSpace, encoding: Encoding, ensemble: Ensemble, choices: np.ndarray, gain: np.ndarray
) -> Effects:
    """Expected gain with each option of each layer, in units of ``gain``, from each fold.

    ``choices`` are option indices [records, layers], ``gain`` the objective [records], higher better, in the order in
    which the ensemble was fitted to them. A fold whose test records do not rank as its damages say is left out.
    """
    found: dict[str, dict[Option, list[float]]] = {n: {o: [] for o in space.options[n]} for n in space.layers}
    rows = np.arange(len(space.layers))
    for fold in ensemble.folds:
        test = np.array(fold.test, dtype=int)
        train = np.setdiff1d(np.arange(len(gain)), test)
        table = fold.network.embed.parts(encoding.options())[0][..., 0].double().numpy()  # [layers, options]
        worth = _slope(_expected(fold.network, table[rows, choices[test]].sum(axis=1)), gain[test])
        if worth <= 0:
            continue
        damage = table[rows, choices[train[around(gain[train])]]]  # [bases, layers]
        for i, name in enumerate(space.layers):
            others = damage.sum(axis=1) - damage[:, i]
            changed = _expected(fold.network, others[:, None] + table[i, : len(space.options[name])])
            for option, value in zip(space.options[name], worth * changed.mean(axis=0)):
                found[name][option].append(float(value))
    return {name: {option: tuple(folds) for option, folds in options.items()} for name, options in found.items()}


def _expected(network: HopNetwork, damage: np.ndarray) -> np.ndarray:
    """The additive part of ŷ for sums of damages, of the same shape."""
    flat = torch.tensor(damage).reshape(-1, 1, 1)
    return np.asarray(network.additive(flat).double().numpy()).reshape(damage.shape)


def around(gain: np.ndarray, count: int = 16) -> np.ndarray:
    """Positions of the records that layers are changed in: at most ``count``, evenly over the better 70 %."""
    order = np.argsort(gain, kind="stable")[int(0.3 * len(gain)) :]
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    spread = x - x.mean()
    return float(spread @ y / (spread @ spread)) if spread.any() else 0.0
