"""Choosing: candidates under a budget, measured, and the best measured one kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qua2sedimo.choices import Candidate, Choice
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import fit_additive, relative_errors
from qua2sedimo.search import propose
from qua2sedimo.stages.fitting import explain, fitted, samples, training_data
from qua2sedimo.stages.measuring import measure_fresh
from qua2sedimo.stages.progress import Progress, silent

if TYPE_CHECKING:
    from qua2sedimo.study import Study


def choose(study: Study, bits: float, candidates: int | None = None, progress: Progress = silent) -> Choice:
    """The best measured configuration of at most ``bits`` average bits; see :meth:`Study.choose`."""
    nbytes = study.check_budget(bits)
    path = study.folder / "choices" / f"{bits!r}.json"
    ensemble, owner = fitted(study)
    if path.exists():
        made, of = Choice.load(path)
        if of == owner and candidates in (None, len(made.candidates)):
            return made
    proposals = propose_candidates(study, nbytes, candidates or 8)
    encoded = np.stack([study.space.encode(configuration) for configuration, _ in proposals])
    predicted = study.objective.sign * ensemble.predict(study.encoding, encoded).mean(axis=0)
    measured = measure_fresh(study, [c for c, _ in proposals], f"measuring candidates for {bits:g} bits", progress)
    rows = [
        Candidate(origin, configuration, study.space.average_bits(configuration), float(p), m.means)
        for (configuration, origin), p, m in zip(proposals, predicted, measured)
    ]
    objective = study.objective
    best = max(rows, key=lambda row: objective.sign * objective.of(row.measured, row.average_bits))
    choice = Choice(
        bits, best.configuration, best.average_bits, study.space.nbytes(best.configuration), best.origin,
        best.predicted, best.measured, rows,
    )  # fmt: skip
    choice.save(path, owner)
    return choice


def propose_candidates(study: Study, nbytes: int, count: int) -> list[tuple[Configuration, str]]:
    """Distinct candidates within the budget, each with the name of the program that proposed it."""
    scores = explain(study)
    choices, objective = training_data(study, samples(study))
    errors = relative_errors(study.space, study.bank, choices)
    additive = fit_additive(study.graph, study.space, errors, objective)
    error_sum = {
        layer: {option: -error.relative_mse for option, error in options.items()}
        for layer, options in study.bank.errors.items()
    }
    programs = [
        ("predictor", scores.total()),
        ("additive sensitivities", additive.scores(study.space, study.bank)),
        ("sum of relative errors", error_sum),
        *((f"predictor, fold {k + 1}", scores.fold(k)) for k in range(scores.folds)),
    ]
    return propose(study.space, nbytes, programs, count)
