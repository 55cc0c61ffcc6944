"""How well a study's predictor ranks configurations that it was not fitted to."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from scipy.stats import spearmanr

from qua2sedimo.metrics.estimates import rank_estimate
from qua2sedimo.objective import Objective
from qua2sedimo.predictor.baselines import additive, one_hot, out_of_fold, ridge
from qua2sedimo.records import Record
from qua2sedimo.report.data import PredictorQuality
from qua2sedimo.study.stages.fit import fitted, fitted_records, training_data
from qua2sedimo.study.workspace import Workspace


def predictor_quality(study: Workspace) -> PredictorQuality:
    """Rank correlations on records that neither trained nor selected the fold that predicts them."""
    ensemble, records = fitted(study)[0], fitted_records(study)
    positions, predicted = ensemble.out_of_fold()
    records = [records[i] for i in positions]
    choices, objective = training_data(study, records)
    place = {int(p): i for i, p in enumerate(positions)}
    folds = [[place[i] for i in fold.test] for fold in ensemble.folds]
    baselines = {
        "additive sensitivities": out_of_fold(partial(additive, study.encoding.damage), choices, objective, folds),
        "ridge on one-hot options": out_of_fold(ridge, one_hot(study.space, choices), objective, folds),
        "sum of relative errors": np.array([-study.bank.error_sum(r.configuration) for r in records]),
        "average bits": np.array([r.average_bits for r in records]),
    }
    sign = study.objective.sign
    return PredictorQuality(
        rank_correlation=rank_estimate(predicted, objective),
        baselines={name: rank_estimate(values, objective) for name, values in baselines.items()},
        pairs=[(float(sign * p), float(sign * m)) for p, m in zip(predicted, objective)],
        noise_ceiling=noise_ceiling(records, study.objective),
    )


def noise_ceiling(records: list[Record], objective: Objective) -> float | None:
    """Rank correlation that a perfect predictor could reach: √ of the split-half reliability of the labels.

    Odd against even images, stepped up to all images by Spearman and Brown's formula. None for a metric of whole sets,
    which has no value for a single image.
    """
    images = [objective.per_image(r) for r in records]
    if any(one is None or len(one) < 4 for one in images):
        return None
    values = np.array(images)
    half = float(spearmanr(values[:, ::2].mean(axis=1), values[:, 1::2].mean(axis=1)).statistic)
    return math.sqrt(max(0.0, 2 * half / (1 + half))) if half > -1 else None
