"""Choosing: candidates under a budget are proposed and measured, and the best measured one is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.ledger import CANDIDATES
from qua2sedimo.measuring.run import Workers
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import Ensemble
from qua2sedimo.predictor.baselines import additive_model
from qua2sedimo.search import (
    Allowed,
    Budget,
    Constraints,
    LayerReason,
    Values,
    allow,
    best_configurations,
    best_settings,
    budget_bytes,
    by_gradients,
    in_decibels,
    most_likely,
    propose,
    reasons,
)
from qua2sedimo.search.halving import paired_p
from qua2sedimo.study.choices import Candidate, Choice, save_choice
from qua2sedimo.study.evidence import evidence
from qua2sedimo.study.measurements import kept_measurement, measure_all, per_image
from qua2sedimo.study.stages.explain import block_scores_of, explain
from qua2sedimo.study.stages.fit import fitted, kept_owner, samples, training_data
from qua2sedimo.study.stages.quick import quick_owner
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

_EARLIER = ", earlier fit"


def choose(
    study: Workspace,
    budget: float | Budget,
    candidates: int | None = None,
    progress: Progress = silent,
    constraints: Constraints | None = None,
    workers: Workers = Workers(),
) -> Choice:
    """The best measured configuration within the budget (a number: average bits), overhead included.

    Integer programs over the predictor's scores (of all folds, and of each fold), additive sensitivities and the
    training-free sum of relative errors propose ``candidates`` (default: 8). All are measured on the same images, which
    no model was fitted to, and the best is stored. An earlier choice of this fit or of a search is returned unchanged,
    unless another number of candidates is requested.
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    limits = constraints or Constraints()
    budget_bytes(study.reachable, budget, allow(study.reachable, limits, study.names_of))
    found = kept_choice(study, budget, limits)
    if found and candidates in (None, len(found.candidates)):
        return found
    ensemble, owner = fitted(study)
    allowed = allow(study.space, limits, study.names_of)
    nbytes = budget_bytes(study.space, budget, allowed)
    fresh = CANDIDATES.images(2 * study.settings.images)
    proposals = propose_candidates(study, nbytes, candidates or 8, allowed)
    predicted = _predicted(study, ensemble, [c for c, _ in proposals])
    what = f"measuring candidates for {budget}"
    measured = measure_all(study, "candidate", [c for c, _ in proposals], fresh, what, progress, workers)
    rows = [
        Candidate(
            origin=origin, configuration=c, average_bits=study.space.average_bits(c), predicted=p, measured=m.means
        )
        for (c, origin), p, m in zip(proposals, predicted, measured)
        if m is not None
    ]
    rows += _of_earlier_fits(study, study.choice_path(budget, limits), fresh, {row.configuration for row in rows})
    if not rows:
        raise Qua2SeDiMoError(f"no candidate for {budget} could be measured", "`qua2sedimo records` has the errors.")
    objective = study.objective
    rows.sort(key=lambda row: -objective.sign * objective.of(row.measured, row.average_bits, row.configuration))
    choice = Choice.of(
        rows[0], study.space, owner, budget, constraints=limits, candidates=rows,
        p_value=_paired_p(study, rows, fresh), judged_on=(fresh.start, len(fresh)),
    )  # fmt: skip
    return save_choice(study.folder / "choices", choice)


def _predicted(study: Workspace, ensemble: Ensemble, configurations: Sequence[Configuration]) -> list[float]:
    """The predicted objective of each; NaN if layers stay in 16 bits, which the predictor does not cover."""
    whole = [i for i, c in enumerate(configurations) if len(c) == len(study.space.layers)]
    expected = [math.nan] * len(configurations)
    if whole:
        encoded = np.stack([study.space.encode(configurations[i]) for i in whole])
        for i, value in zip(whole, study.objective.sign * ensemble.predict(study.encoding, encoded).mean(axis=0)):
            expected[i] = float(value)
    return expected


def _paired_p(study: Workspace, rows: list[Candidate], images: range) -> float | None:
    """p-value of a test of the first row against the second, paired by image."""
    if len(rows) < 2 or not study.objective.in_decibels:
        return None
    best, second = (kept_measurement(study, "candidate", row.configuration, images) for row in rows[:2])
    if best is None or second is None:
        return None
    return paired_p(per_image(study, best), per_image(study, second))


def _of_earlier_fits(study: Workspace, path: Path, images: range, known: set[Configuration]) -> list[Candidate]:
    """Other candidates of an earlier fit for the same budget: measured on the same images, they compete at no cost."""
    if not path.exists():
        return []
    made = Choice.load(path)
    of_this = made.owner.startswith(f"{study.identity} {study.settings.protocol}")
    if not of_this or made.judged_on != (images.start, len(images)):
        return []  # of other weights, or measured on other images
    others = [c for c in made.candidates if c.configuration not in known]
    return [c.model_copy(update={"origin": f"{c.origin.removesuffix(_EARLIER)}{_EARLIER}"}) for c in others]


def kept_choice(study: Workspace, budget: Budget, constraints: Constraints | None = None) -> Choice | None:
    """The stored choice for this budget, if it is of the current fit or of a search of this study; without a fit, also
    one by statistics alone."""
    path = study.choice_path(budget, constraints)
    if not path.exists():
        return None
    made = Choice.load(path)
    if made.owner == search_owner(study):
        return made
    if made.owner == quick_owner(study) and not (study.folder / "predictor" / "predictor.json").exists():
        return made
    judged = made.judged_on is not None and made.judged_on[0] in CANDIDATES
    return made if judged and made.owner == kept_owner(study) else None


def search_owner(study: Workspace) -> str:
    """The owner of a choice of a search."""
    return f"search {study.identity} {study.settings.protocol}"


def propose_candidates(
    study: Workspace, nbytes: int, count: int, allowed: Allowed | None = None
) -> list[tuple[Configuration, str]]:
    """Distinct candidates within the budget, each with the name of the program that proposed it."""
    scores = explain(study)
    additive = additive_model(study.encoding.damage, *training_data(study, samples(study)))
    programs: list[tuple[str, Values]] = [
        ("predictor", scores.total()),
        ("additive sensitivities", additive.scores(study.space)),
    ]
    if study.objective.in_decibels:
        programs.append(("all measurements", most_likely(evidence(study))))
    if study.bank.costs() is not None:
        programs.append(("gradients", by_gradients(study.unmeasured)))
    programs.append(("sum of relative errors", _error_sum(study)))
    programs += [(f"predictor, fold {k + 1}", scores.fold(k)) for k in range(scores.folds)]
    free = allowed is None or allowed == allow(study.space)
    return propose(study.space, nbytes, programs, count, allowed, _of_blocks(study, nbytes) if free else ())


def _of_blocks(study: Workspace, nbytes: int) -> list[tuple[Configuration, str]]:
    """The best sum of the predictor's block scores: one setting per block, by integer program.

    Scores of different blocks come from different hops and need not be additive. So it is proposed only if the
    predictor expects it to be at least as good as the configuration of least relative error.
    """
    try:
        scores = block_scores_of(study)
    except Qua2SeDiMoError:  # a hop without a useful ranking scores no block
        return []
    blocks = [entry.pareto() for entry in scores.blocks.values()]
    found = [c for c in best_settings(blocks, nbytes, 1) if len(c) == len(study.space.layers)]
    rivals = list(best_configurations(study.space, _error_sum(study), nbytes, 1))
    encoded = np.stack([study.space.encode(c) for c in (*rivals, *found)])
    expected = fitted(study)[0].predict(study.encoding, encoded).mean(axis=0)
    return [(c, "predictor, blocks") for c, e in zip(found, expected[len(rivals) :]) if e >= expected[0]]


def _error_sum(study: Workspace) -> Values:
    """Minus the relative error of each option; it needs no measurement."""
    return {n: {o: -e.relative for o, e in options.items()} for n, options in study.bank.errors.items()}


def why(study: Workspace, choice: Choice) -> list[LayerReason]:
    """For each layer of a choice: its option, the cost of the next cheaper one, and the deciding constraint or gain.

    Costs and gains are in decibels if the objective is, else scores.
    """
    allowed, scores = allow(study.space, choice.constraints, study.names_of), scores_for(study)
    tied = {n: study.graph.layers[n].copies for n in study.space.layers}
    found = reasons(study.space, scores, choice.configuration, allowed, tied)
    return in_decibels(found, scores, choice.configuration) if study.objective.in_decibels else found


def scores_for(study: Workspace) -> Values:
    """The scores that explain a choice: the damage model's if the objective is in decibels, else the predictor's."""
    if study.objective.in_decibels:
        return most_likely(evidence(study))
    return explain(study).total()
