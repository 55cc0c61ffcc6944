"""The paper's own way of choosing: one objective weighs quality against size, and every block or layer takes its best.

There is no budget: the size is a result. Section 3.3 of the paper; included for comparison.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.ledger import CANDIDATES
from qua2sedimo.measuring.run import Workers
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import Ensemble, FitSettings, fit_ensemble
from qua2sedimo.sensitivity import block_scores, op_scores
from qua2sedimo.study.choices import Candidate, Choice, objective_name, save_choice
from qua2sedimo.study.measurements import measure_all
from qua2sedimo.study.stages.fit import hop_roots, samples, training_data
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def choose_by_objective(
    study: Workspace, text: str, progress: Progress = silent, workers: Workers = Workers()
) -> Choice:  # fmt: skip
    """Fit a predictor of the objective ``text``, e.g. ``psnr - 3*bits``, to the measured random configurations; combine
    each block's best setting, and each layer's best option; measure both on fresh images and store the better one.

    The choice's predicted values are those of ``text``. Raises :class:`Qua2SeDiMoError` if the expression is
    invalid or names a metric that was not measured.
    """
    objective = study.parsed(text)
    records = samples(study)
    known = records[0].measurement.means
    for name in objective.metrics:
        if name not in known:
            raise Qua2SeDiMoError(f"objective '{text}': {name} was not measured", f"Measured: {', '.join(known)}.")
    values = np.array([objective.gain(r) for r in records])
    fresh = CANDIDATES.images(2 * study.settings.images)
    settings = FitSettings(loss=study.settings.loss, seed=study.settings.seed)
    total = settings.folds * settings.epochs
    ensemble = fit_ensemble(
        study.encoding, training_data(study, records)[0], values, settings,
        lambda fold, epoch: progress(fold * settings.epochs + epoch, total, f"fitting {text}"),
        hop_roots(study, settings.hops),
    )  # fmt: skip
    progress(total, total, f"fitting {text}")
    proposed = _proposed(study, ensemble)
    what = f"measuring the best of {text}"
    measured = measure_all(study, "candidate", list(proposed), fresh, what, progress, workers)
    whole = np.stack([study.space.encode(c) for c in proposed])
    predicted = objective.sign * ensemble.predict(study.encoding, whole).mean(axis=0)
    rows = [
        Candidate(
            origin=origin, configuration=c, average_bits=study.space.average_bits(c), predicted=float(p),
            measured=m.means,
        )
        for (c, origin), p, m in zip(proposed.items(), predicted, measured) if m is not None
    ]  # fmt: skip
    if not rows:
        raise Qua2SeDiMoError(f"no candidate for {text} could be measured", "`qua2sedimo records` has the errors.")
    best = max(rows, key=lambda row: objective.sign * objective.of(row.measured, row.average_bits, row.configuration))
    owner = f"objective {study.identity} {study.settings.protocol}"
    judged = fresh.start, len(fresh)
    choice = Choice.of(best, study.space, owner, candidates=rows, objective=text, judged_on=judged)
    return save_choice(study.folder / "choices", choice)


def objective_path(study: Workspace, text: str) -> Path:
    """Path of the choice for an objective."""
    return study.folder / "choices" / f"{objective_name(text)}.json"


def _proposed(study: Workspace, ensemble: Ensemble) -> dict[Configuration, str]:
    """Each block's best setting, unless a hop has no useful ranking, and each layer's best option."""
    total = op_scores(study.space, study.encoding, ensemble).total()
    layers = {n: max(options, key=options.__getitem__) for n, options in total.items()}
    found: dict[Configuration, str] = {}
    try:
        scores = block_scores(study.graph, study.space, study.encoding, ensemble)
    except Qua2SeDiMoError:  # a hop without a useful ranking scores no block; hop 0, which scores layers, has one
        pass
    else:
        blocks = dict(layers)
        for entry in scores.blocks.values():
            best = entry.settings[int(entry.scores.sum(axis=1).argmax())]
            blocks |= {n: options[i] for n, options, i in zip(entry.layers, entry.options, best)}
        found[Configuration({n: blocks[n] for n in study.space.layers})] = "each block's best"
    found.setdefault(Configuration({n: layers[n] for n in study.space.layers}), "each layer's best")
    return found
