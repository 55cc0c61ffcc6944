"""Sensitivity in units of the objective: what changing one layer alone is expected to cost.

A score orders options and has no unit. The additive model (:mod:`qua2sedimo.predictor.additive`) has one, and ranks
unseen configurations at least as well: ln(image error) = ln Σ_l exp(s_l)·e_l^γ. It is fitted for each fold of the
predictor to the records outside the fold's test part; those of the test part say by least squares what a unit of it is
worth in the objective. Each option of a layer is then put into measured configurations, all other layers left as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import Graph
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.predictor import Ensemble, fit_additive, relative_errors

#: For each layer and option, the expected gain of each fold that ranks at all; its level has no meaning.
Effects = Mapping[str, Mapping[Option, tuple[float, ...]]]

_FLOOR = 1e-9  # an exact option would have ln 0


def option_effects(
    graph: Graph, space: SearchSpace, bank: Bank, ensemble: Ensemble, choices: np.ndarray, gain: np.ndarray
) -> Effects:
    """Expected gain with each option of each layer, in units of ``gain``, from each fold.

    ``choices`` are option indices [records, layers], ``gain`` the objective [records], higher better, in the order in
    which the ensemble was fitted to them. A fold whose test records do not rank as its model says is left out.
    """
    errors = relative_errors(space, bank, choices)
    table = [np.array([bank.errors[n][o].relative_mse for o in space.options[n]]) for n in space.layers]
    found: dict[str, dict[Option, list[float]]] = {n: {o: [] for o in space.options[n]} for n in space.layers}
    for fold in ensemble.folds:
        test = np.array(fold.test, dtype=int)
        train = np.setdiff1d(np.arange(len(gain)), test)
        model = fit_additive(graph, space, errors[train], gain[train])
        slope = _slope(model.quality(errors[test]), gain[test])
        if slope <= 0:
            continue
        bases = errors[train[around(gain[train])]]
        weight = np.exp(model.log_sensitivity)
        damage = weight * (bases + _FLOOR) ** model.exponent  # [bases, layers]
        for i, name in enumerate(space.layers):
            others = damage.sum(axis=1) - damage[:, i]
            changed = others[:, None] + weight[i] * (table[i] + _FLOOR) ** model.exponent
            for option, value in zip(space.options[name], -slope * np.log(changed).mean(axis=0)):
                found[name][option].append(float(value))
    return {name: {option: tuple(folds) for option, folds in options.items()} for name, options in found.items()}


def around(gain: np.ndarray, count: int = 16) -> np.ndarray:
    """Positions of the records that layers are changed in: at most ``count``, evenly over the better 70 %."""
    order = np.argsort(gain, kind="stable")[int(0.3 * len(gain)) :]
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    spread = x - x.mean()
    return float(spread @ y / (spread @ spread)) if spread.any() else 0.0
