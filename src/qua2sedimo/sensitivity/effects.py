"""Sensitivity in units of the objective: scores times what a unit of score is worth.

A score orders options and has no unit. The sum of a configuration's scores orders configurations; on measured ones
that a fold never trained on, the slope of the objective against that sum says what a unit is worth: decibels, if the
objective is a PSNR. Slope × score is the first-order effect of an option, of each fold; differences between options
of one layer are what the change costs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.predictor import Ensemble
from qua2sedimo.sensitivity.scores import Scores

#: For each layer and option, the expected gain of each fold that ranks at all; its level has no meaning.
Effects = Mapping[str, Mapping[Option, tuple[float, ...]]]


def option_effects(
    space: SearchSpace, scores: Scores, ensemble: Ensemble, choices: np.ndarray, gain: np.ndarray
) -> Effects:
    """Slope × score for each fold, from option indices [records, layers] and the objective [records], higher better.

    Records are in the order in which the ensemble was fitted to them. The slope is by least squares over the fold's
    test records above its 20 % quantile, below which the fit took no notice of differences. Folds without any slope
    upward are left out: they say nothing.
    """
    slopes = {}
    for k, fold in enumerate(ensemble.folds):
        test = np.array([i for i in fold.test if gain[i] > fold.low], dtype=int)
        table = scores.fold(k)
        total = np.array([sum(table[n][space.options[n][j]] for n, j in zip(space.layers, choices[i])) for i in test])
        spread = total - total.mean() if len(test) > 1 else np.zeros(1)
        slope = float(spread @ gain[test] / (spread @ spread)) if spread.any() else 0.0
        if slope > 0:
            slopes[k] = slope
    return {
        layer: {option: tuple(slope * s.folds[k] for k, slope in slopes.items()) for option, s in options.items()}
        for layer, options in scores.layers.items()
    }
