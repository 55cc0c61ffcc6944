"""Choosing: candidates under a budget, measured, and the best measured one kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import fit_additive, relative_errors
from qua2sedimo.search import (
    Allowed,
    Budget,
    Constraints,
    LayerReason,
    Setting,
    Values,
    allow,
    best_configurations,
    best_settings,
    budget_bytes,
    in_decibels,
    most_likely,
    propose,
    reasons,
)
from qua2sedimo.search.halving import paired_p
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.evidence import evidence, measure_all, per_image
from qua2sedimo.study.stages.fit import block_scores_of, explain, fitted, samples, training_data
from qua2sedimo.system.progress import Progress, silent

if TYPE_CHECKING:
    from qua2sedimo.study.facade import Study

_EARLIER = ", earlier fit"


def choose(
    study: Study,
    budget: Budget,
    candidates: int | None = None,
    constraints: Constraints | None = None,
    progress: Progress = silent,
) -> Choice:
    """The best measured configuration within the budget; see :meth:`Study.choose`."""
    allowed = allow(study.space, constraints, names_of(study))
    nbytes = budget_bytes(study.space, budget, allowed)
    found = kept_choice(study, budget, constraints)
    if found and candidates in (None, len(found.candidates)):
        return found
    ensemble, owner = fitted(study)
    proposals = propose_candidates(study, nbytes, candidates or 8, allowed)
    whole = [c for c, _ in proposals if len(c) == len(study.space.layers)]
    predicted = np.full(len(proposals), np.nan)
    if len(whole) == len(proposals):
        encoded = np.stack([study.space.encode(c) for c in whole])
        predicted = study.objective.sign * ensemble.predict(study.encoding, encoded).mean(axis=0)
    fresh = range(study.settings.images, 3 * study.settings.images)
    what = f"measuring candidates for {budget}"
    measured = measure_all(study, "candidate", [c for c, _ in proposals], fresh, what, progress)
    rows = [
        Candidate(origin, configuration, study.space.average_bits(configuration), float(p), m.means)
        for (configuration, origin), p, m in zip(proposals, predicted, measured)
    ]
    rows += _of_earlier_fits(study, choice_path(study, budget, constraints), {row.configuration for row in rows})
    objective = study.objective
    rows.sort(key=lambda row: -objective.sign * objective.of(row.measured, row.average_bits, row.configuration))
    best = rows[0]
    choice = Choice(
        8 * budget.nbytes(study.space.weights) / study.space.weights if budget.unit != "bits" else budget.amount,
        best.configuration, best.average_bits, study.space.nbytes(best.configuration), best.origin,
        best.predicted, best.measured, rows, _paired_p(study, rows, fresh),
    )  # fmt: skip
    choice.save(choice_path(study, budget, constraints), owner)
    return choice


def _paired_p(study: Study, rows: list[Candidate], images: range) -> float | None:
    """The first row's p-value against the second, of a paired test on the images that judged both."""
    if len(rows) < 2 or not study.objective.in_decibels:
        return None
    of = {
        r.configuration: per_image(study, r.measurement)
        for r in study.records.all("candidate")
        if r.measurement.start == images.start
    }
    best, second = (np.array(of[row.configuration]) for row in rows[:2])
    return paired_p(best, second)


def _of_earlier_fits(study: Study, path: Path, known: set[Configuration]) -> list[Candidate]:
    """Other candidates that an earlier fit, of another loss or of fewer records, had measured for just this: the same
    fresh images judged them, so they compete without a new one."""
    if not path.exists():
        return []
    made, owner = Choice.load(path)
    if not owner.startswith(f"{study.identity} {study.settings.protocol}"):
        return []  # of other weights, or measured by a search on other images
    others = [c for c in made.candidates if c.configuration not in known]
    return [replace(c, origin=f"{c.origin.removesuffix(_EARLIER)}{_EARLIER}") for c in others]


def kept_choice(study: Study, budget: Budget, constraints: Constraints | None = None) -> Choice | None:
    """The choice made before for just this, if it rests on the present fit or came from a search of this study."""
    path = choice_path(study, budget, constraints)
    if not path.exists():
        return None
    made, owner = Choice.load(path)
    if owner == f"search {study.identity} {study.settings.protocol}":
        return made
    return made if owner == fitted(study)[1] else None


def choice_path(study: Study, budget: Budget, constraints: Constraints | None = None) -> Path:
    """Where the choice for a budget is kept; one under constraints has a name of its own."""
    limits = constraints.name if constraints else ""
    suffix = f"-{zlib.crc32(limits.encode()):08x}" if limits else ""
    return study.folder / "choices" / f"{budget.name}{suffix}.json"


def names_of(study: Study) -> Callable[[str], list[str]]:
    """All names by which patterns may mean a layer: its module and the module's copies."""
    return lambda layer: [study.graph.layers[layer].module, *study.graph.layers[layer].copies]


def propose_candidates(
    study: Study, nbytes: int, count: int, allowed: Allowed | None = None
) -> list[tuple[Configuration, str]]:
    """Distinct candidates within the budget, each with the name of the program that proposed it."""
    scores = explain(study)
    choices, objective = training_data(study, samples(study))
    errors = relative_errors(study.space, study.bank, choices)
    additive = fit_additive(study.graph, study.space, errors, objective)
    programs: list[tuple[str, Values]] = [
        ("predictor", scores.total()),
        ("additive sensitivities", additive.scores(study.space, study.bank)),
    ]
    if study.objective.in_decibels:
        programs.append(("all measurements", most_likely(evidence(study))))
    programs.append(("sum of relative errors", _error_sum(study)))
    programs += [(f"predictor, fold {k + 1}", scores.fold(k)) for k in range(scores.folds)]
    free = allowed is None or allowed == allow(study.space)
    return propose(study.space, nbytes, programs, count, allowed, _of_blocks(study, nbytes) if free else ())


def _of_blocks(study: Study, nbytes: int) -> list[tuple[Configuration, str]]:
    """What the predictor's scores of whole blocks add up to best: one setting a block, by integer program.

    Scores of different blocks come from different hops and need not add up. So it is proposed only where the predictor
    expects no less of it than of what needs no predictor, the least sum of relative errors.
    """
    try:
        scores = block_scores_of(study)
    except Qua2SeDiMoError:  # a hop that ranks nothing scores no block, and so proposes nothing
        return []
    blocks = [
        [Setting(s.options, s.nbytes, s.score) for s in entry.pareto()]
        for entry in scores.blocks.values()
    ]  # fmt: skip
    found = [c for c in best_settings(blocks, nbytes, 1) if len(c) == len(study.space.layers)]
    rivals = list(best_configurations(study.space, _error_sum(study), nbytes, 1))
    encoded = np.stack([study.space.encode(c) for c in (*rivals, *found)])
    expected = fitted(study)[0].predict(study.encoding, encoded).mean(axis=0)
    return [(c, "predictor, blocks") for c, e in zip(found, expected[len(rivals) :]) if e >= expected[0]]


def _error_sum(study: Study) -> Values:
    """Minus the relative error, whatever the objective: it needs no measurement."""
    return {n: {o: -e.relative_mse for o, e in options.items()} for n, options in study.bank.errors.items()}


def why(study: Study, choice: Choice, constraints: Constraints | None = None) -> list[LayerReason]:
    """Per layer of a choice: its option, what the next cheaper one would have cost, and what decided.

    Costs and gains are decibels of the pictures where the objective is in decibels, else scores.
    """
    allowed, scores = allow(study.space, constraints, names_of(study)), scores_for(study)
    tied = {n: study.graph.layers[n].copies for n in study.space.layers}
    found = reasons(study.space, scores, choice.configuration, allowed, tied)
    return in_decibels(found, scores, choice.configuration) if study.objective.in_decibels else found


def scores_for(study: Study) -> Values:
    """The scores that explain a choice: damage by the additive model of all measurements, or the predictor's."""
    if study.objective.in_decibels:
        return most_likely(evidence(study))
    return explain(study).total()
