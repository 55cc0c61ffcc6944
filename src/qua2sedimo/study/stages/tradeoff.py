"""The paper's own way of choosing: one objective weighs quality against size, and everything takes its best by itself.

There is no budget in it: the size is what comes out. Section 3.3 of the paper; here it is for comparison.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.objective import Objective
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import Ensemble, FitSettings, fit_ensemble
from qua2sedimo.sensitivity import block_scores, op_scores
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.evidence import measure_all
from qua2sedimo.study.stages.fit import hop_roots, samples, training_data
from qua2sedimo.system.progress import Progress, silent

if TYPE_CHECKING:
    from qua2sedimo.study.facade import Study


def choose_by_objective(study: Study, text: str, progress: Progress = silent) -> Choice:
    """Fit a predictor to the objective ``text``, e.g. ``psnr - 3*bits``, over the measured random configurations; take
    each block's best setting, and each layer's best option; measure both on fresh images and keep the better one.

    Raises :class:`Qua2SeDiMoError` if the expression cannot be parsed or names a metric that was not measured.
    """
    objective = Objective.parse(text, study.space.weights, study.objective.macs)
    records = samples(study)
    values = np.array([objective.gain(r) for r in records])
    settings = FitSettings(loss=study.settings.loss, seed=study.settings.seed)
    total = settings.folds * settings.epochs
    ensemble = fit_ensemble(
        study.encoding, training_data(study, records)[0], values, settings,
        lambda fold, epoch: progress(fold * settings.epochs + epoch, total, f"fitting {text}"),
        hop_roots(study, settings.hops),
    )  # fmt: skip
    proposed = _proposed(study, ensemble)
    fresh = range(study.settings.images, 3 * study.settings.images)
    measured = measure_all(study, "candidate", list(proposed), fresh, f"measuring the best of {text}", progress)
    whole = np.stack([study.space.encode(c) for c in proposed])
    predicted = objective.sign * ensemble.predict(study.encoding, whole).mean(axis=0)
    rows = [
        Candidate(origin, c, study.space.average_bits(c), float(p), m.means)
        for (c, origin), p, m in zip(proposed.items(), predicted, measured)
    ]
    best = max(rows, key=lambda row: objective.sign * objective.of(row.measured, row.average_bits, row.configuration))
    choice = Choice(
        best.average_bits, best.configuration, best.average_bits, study.space.nbytes(best.configuration), best.origin,
        best.predicted, best.measured, rows,
    )  # fmt: skip
    choice.save(objective_path(study, text), f"objective {study.identity} {study.settings.protocol} {text}")
    return choice


def objective_path(study: Study, text: str) -> Path:
    """Where the choice for an objective is kept."""
    return study.folder / "choices" / f"objective-{zlib.crc32(''.join(text.split()).encode()):08x}.json"


def _proposed(study: Study, ensemble: Ensemble) -> dict[Configuration, str]:
    """Each block's best setting, unless some hop ranks nothing; each layer's best option."""
    total = op_scores(study.space, study.encoding, ensemble).total()
    layers = {n: max(options, key=options.__getitem__) for n, options in total.items()}
    found: dict[Configuration, str] = {}
    try:
        scores = block_scores(study.graph, study.space, study.encoding, ensemble)
    except Qua2SeDiMoError:  # a hop that ranks nothing scores no block; layers are scored at hop 0, which ranks
        pass
    else:
        blocks = dict(layers)
        for entry in scores.blocks.values():
            best = entry.settings[int(entry.scores.sum(axis=1).argmax())]
            blocks |= {n: options[i] for n, options, i in zip(entry.layers, entry.options, best)}
        found[Configuration({n: blocks[n] for n in study.space.layers})] = "each block's best"
    found.setdefault(Configuration({n: layers[n] for n in study.space.layers}), "each layer's best")
    return found
