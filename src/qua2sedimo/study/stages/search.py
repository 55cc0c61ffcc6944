"""Searching: an image budget is spent on single layers, rounds of candidates, and a final of the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.locks import alone
from qua2sedimo.images.ledger import FINALS, LEARNING
from qua2sedimo.measuring.run import Workers
from qua2sedimo.options import Configuration
from qua2sedimo.records.measurement import Measurement
from qua2sedimo.search import (
    Allowed,
    Budget,
    Constraints,
    Evidence,
    Values,
    allow,
    best_configurations,
    budget_bytes,
    by_gradients,
    drawn,
    most_likely,
    one_at_a_time,
)
from qua2sedimo.search.halving import paired_p, schedule, survivors
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.evidence import FEW, ROLES, check_objective, evidence, measure_singles
from qua2sedimo.study.measurements import images_spent, measure_all, per_image
from qua2sedimo.study.settings import USUAL_CONFIGURATIONS, Effort, usual_effort
from qua2sedimo.study.stages.choose import choose, kept_choice, search_owner
from qua2sedimo.study.stages.fit import fit
from qua2sedimo.study.stages.last_comparison import compared_and_kept
from qua2sedimo.study.stages.measure import measure
from qua2sedimo.study.stages.quantize import quantize
from qua2sedimo.study.stages.quick import quick
from qua2sedimo.study.stages.search_log import Compared, Finals, Round, SearchLog, log_path
from qua2sedimo.study.worker import crew
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

_ROUND, _LEAST_ROUNDS = 8, 2  # candidates per round; rounds before the noise criterion may end them
_DRAWS = 16  # models drawn from the posterior, for proposals and for the expected gain
_SPREADS = (1.0, 1.0, 2.0)  # widths of the draws, relative to the posterior
#: Candidates cycle through this many sets of images. Most of the noise is specific to an image: on a single set, the
#: winner would be the best for its images only.
_IMAGE_SETS = 8
_FINALISTS, _FINAL_IMAGES = 8, 16
_LIKE = 20  # candidates that differ in less than one of this many layers count as the same
#: Single layers are measured if that takes no more than this share of the images.
_ALONE = 0.5
_DECIBELS = 10 / np.log(10)  # per unit of the natural logarithm of squared error


@dataclass(frozen=True)
class Found:
    """The choice of a search, its rounds, and the last comparison, if there was one; neither if the same search was
    finished before."""

    choice: Choice
    rounds: list[Round]
    compared: Compared | None = None


def search(
    study: Workspace,
    budget: float | Budget,
    images: int,
    progress: Progress = silent,
    constraints: Constraints | None = None,
    workers: Workers = Workers(),
) -> Found:
    """The best measured configuration within the budget (a number: average bits), for at most ``images`` images; those
    of earlier records that searches use count, also for other budgets.

    First every layer is measured alone at its smallest option, unless that takes more than half of the images. Then
    rounds: the damage model is fitted to all measurements; the best configurations of its most likely parameters and of
    draws from its posterior are measured on few images. Rounds end when the expected gain of a better model is below
    the noise of a final with the remaining images, or after three fifths of the images; later if the rest is too small
    to compare all finalists, and the final has only two. The best candidates compete on images of their own by
    successive halving. At last the winner and the choice by gradients are both polished, and compared on fresh images;
    these do not count. Every decision and every measurement is recorded: the same call continues an interrupted search,
    to the same choice.

    Raises :class:`Qua2SeDiMoError`, before any image is spent, if ``images`` are too few.
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    limits = constraints or Constraints()
    check_search(study, budget, images, limits)
    quantize(study, progress, workers)
    nbytes, allowed = check_search(study, budget, images, limits)
    found = _kept_search(study, budget, limits, images)
    if found is not None:
        return Found(found, [])
    path = log_path(study, budget, limits)
    with alone(path.parent, lambda: progress(0, 1, "waiting for the same search"), path.stem):
        found = _kept_search(study, budget, limits, images)
        if found is not None:  # by the process that was waited for
            return Found(found, [])
        log = SearchLog.of(path, search_owner(study), images) or _begun(study, nbytes, allowed, images)
        log.save(path)
        with crew(study, workers, progress):
            if log.singles:
                measure_singles(study, FEW, progress, workers)
            log = _rounds(study, log, path, nbytes, allowed, progress)
            best, decided = _decide(study, log, progress)
        choice = Choice.of(best, study.space, search_owner(study), budget, constraints=limits, images=images, **decided)
        rival = next(best_configurations(study.space, by_gradients(study.unmeasured), nbytes, 1, allowed))
        choice, compared = compared_and_kept(study, choice, rival, log, path, progress)
    return Found(choice, log.rounds, compared)


def _kept_search(study: Workspace, budget: Budget, constraints: Constraints, images: int) -> Choice | None:
    """The choice of the same search, if it was finished before."""
    found = kept_choice(study, budget, constraints)
    return found if found is not None and found.origin == "search" and found.images == images else None


def _begun(study: Workspace, nbytes: int, allowed: Allowed, images: int) -> SearchLog:
    """The log of a new search; raises :class:`Qua2SeDiMoError` if too few images are left for it."""
    until = images - _for_finals(images)
    _refuse_overspending(study, nbytes, allowed, images, until)
    return SearchLog(owner=search_owner(study), images=images, singles=_singles_are_due(study, images, until))


def check_search(
    study: Workspace, budget: Budget, images: int, constraints: Constraints | None = None
) -> tuple[int, Allowed]:
    """(budget in packed bytes, allowed options); raises :class:`Qua2SeDiMoError` if the search is impossible.

    Needs no bank and no model, so that errors are found before work begins.
    """
    check_objective(study)
    allowed = allow(study.reachable, constraints, study.names_of)
    nbytes = budget_bytes(study.reachable, budget, allowed)
    if images < least_images():
        raise Qua2SeDiMoError(
            f"{images} images are too few to search",
            f"{least_images()} are the least: {_ROUND} candidates on {FEW}, two finalists on {_FINAL_IMAGES}.",
        )
    LEARNING.images(_IMAGE_SETS * FEW)
    return nbytes, allowed


def _singles_are_due(study: Workspace, images: int, until: int) -> bool:
    """Whether to measure single layers: for at most half of all images, within what may be spent before the final."""
    every = FEW * len(study.space.layers)
    lacking = every - images_spent(study, "single")
    return every <= _ALONE * images and lacking > 0 and _spent(study) + lacking <= until


def _refuse_overspending(study: Workspace, nbytes: int, allowed: Allowed, images: int, until: int) -> None:
    """Raise :class:`Qua2SeDiMoError` unless the remaining images allow another candidate, or the final of two."""
    spent = _spent(study)
    if (until - spent) // FEW >= 1:
        return
    known = evidence(study)
    before = spent - images_spent(study, "final", _candidates(known, nbytes, allowed, study.settings.seed))
    least = before + 2 * _FINAL_IMAGES
    if images < least:
        raise Qua2SeDiMoError(
            f"{images} images are fewer than this search needs: {spent} are spent, and a final of two takes "
            f"{2 * _FINAL_IMAGES}",
            f"None was spent. Use --image-budget {least} or more.",
        )


def run(
    study: Workspace,
    budget: float | Budget,
    configurations: int | None = None,
    progress: Progress = silent,
    workers: Workers = Workers(),
    effort: Effort | None = None,
) -> Choice:
    """All stages from an empty folder to the choice.

    ``effort`` "quick": calibration statistics alone (:func:`~qua2sedimo.study.stages.quick.quick`). "search": random
    ``configurations`` for the explanation, a search that spends up to twice as many images, then the predictor, which
    is also fitted to single layers. "paper": random configurations, and the predictor's candidates; also if the
    objective is not in decibels. By default as :func:`~qua2sedimo.study.settings.usual_effort` says; a choice that was
    made with more is then kept.
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    budget_bytes(study.reachable, budget)
    if effort is None:
        effort = usual_effort(study.settings, configurations)
        if effort == "quick" and (found := kept_choice(study, budget)) is not None:
            return found  # with more effort, made before
    if effort == "quick":
        return quick(study, budget, progress, workers=workers)
    quantize(study, progress, workers)
    with crew(study, workers, progress):
        records = measure(study, configurations or USUAL_CONFIGURATIONS, progress)
        if effort == "paper" or not study.objective.in_decibels:
            fit(study, progress=progress)
            return choose(study, budget, progress=progress)
        choice = kept_choice(study, budget)
        if choice is None:
            each = sum(r.measurement.images for r in records)
            begun = SearchLog.of(log_path(study, budget), search_owner(study))
            fresh = max(least_images() + _spent(study), (3 + 2 * _searches(study)) * each)
            images = fresh if begun is None else begun.images  # of a search that was interrupted
            choice = search(study, budget, images, progress).choice
    fit(study, progress=progress)
    return choice


def _spent(study: Workspace) -> int:
    """Images of all records that searches use, that is without the frontier and the predictor's candidates."""
    return sum(images_spent(study, role) for role in (*ROLES, "final"))


def _for_finals(images: int) -> int:
    """Images reserved for the final: two fifths, if that is enough for all finalists; else those of a final of two."""
    share = 2 * images // 5
    return min(share, 3 * _FINALISTS * _FINAL_IMAGES) if share >= _FINALISTS * _FINAL_IMAGES else 2 * _FINAL_IMAGES


def least_images() -> int:
    """The minimum of images of a search: one round, and a final of two."""
    return FEW * _ROUND + 2 * _FINAL_IMAGES


def _searches(study: Workspace) -> int:
    """Number of earlier searches of the study, whose images do not reduce those of the next."""
    return sum(choice.origin == "search" for choice in study.choices())


def _rounds(
    study: Workspace, log: SearchLog, path: Path, nbytes: int, allowed: Allowed, progress: Progress
) -> SearchLog:  # fmt: skip
    """Measure proposals until the expected gain is below the noise, or all images but those of the finals are spent.

    What a round measures is decided by what is known before it, and written down before it begins. So an interrupted
    round is finished as it would have been, also if its measurements ended in another order.
    """
    for planned in log.rounds:
        _measure_round(study, planned, progress)
    while not log.rounds_ended:
        planned = _next_round(study, log, nbytes, allowed)
        log = log.model_copy(update={"rounds": [*log.rounds, planned]})
        log.save(path)
        _measure_round(study, planned, progress)
    if log.finals is None:
        known = evidence(study)
        candidates = _candidates(known, nbytes, allowed, study.settings.seed)
        spent = _spent(study) - images_spent(study, "final", candidates)
        expected = [float(e) for e in known.predicted(candidates)]
        log = log.model_copy(update={"finals": Finals(configurations=candidates, expected=expected, spent=spent)})
        log.save(path)
    return log


def _next_round(study: Workspace, log: SearchLog, nbytes: int, allowed: Allowed) -> Round:
    """The candidates of the next round; none if another round does not pay, or no images are left for one."""
    known, number = evidence(study), len(log.rounds)
    own = [m for m in known.measured if m.kind == 2 and _fits(known, m.configuration, nbytes, allowed)]
    proposals = _proposals(known, nbytes, allowed, np.random.default_rng([study.settings.seed, number]))
    tried = {m.configuration for m in known.measured}
    new = [c for c in proposals if c not in tried][: _ROUND - len(own) % _ROUND]
    spent = _spent(study)
    best = float(known.predicted([m.configuration for m in own]).max()) if own else float("nan")
    gain, noise = expected_gain(known, proposals), _noise(known, log.images - spent)
    room = (log.images - _for_finals(log.images) - spent) // FEW
    # With fewer measurements than layers, the model's certainty comes from its prior alone.
    enough = len(own) >= _LEAST_ROUNDS * _ROUND and len(known.measured) >= len(study.space.layers)
    if room < 1 or (enough and gain < noise):
        new = []
    before = sum(m.kind == 2 for m in known.measured)
    starts = [FEW * (i % _IMAGE_SETS) for i in range(before, before + len(new[: max(0, room)]))]
    return Round(
        number=number, spent=spent, best=best, expected_gain=gain, noise=noise,
        configurations=new[: len(starts)], starts=starts,
    )  # fmt: skip


def _measure_round(study: Workspace, planned: Round, progress: Progress) -> None:
    images = [LEARNING.images(FEW, skip) for skip in planned.starts]
    what = f"round {planned.number + 1}: measuring candidates"
    measure_all(study, "round", planned.configurations, images, what, progress)


def _proposals(known: Evidence, nbytes: int, allowed: Allowed, rng: np.random.Generator) -> list[Configuration]:
    """The best configurations by the most likely model, the simple programs, and drawn models."""
    programs = [most_likely(known), *_simple(known)]
    programs += [drawn(known, rng, _SPREADS[i % len(_SPREADS)]) for i in range(_DRAWS)]
    found = [next(best_configurations(known.space, values, nbytes, 1, allowed)) for values in programs]
    return list(dict.fromkeys(found))


def _simple(known: Evidence) -> list[Values]:
    """Programs that need no model: gradients or the sum of errors, and single layers if all were measured."""
    alone = {name for m in known.measured if m.kind == 0 for name in m.configuration}
    return [by_gradients(known), *([one_at_a_time(known)] if alone >= set(known.space.layers) else [])]


def expected_gain(known: Evidence, proposals: list[Configuration], draws: int = _DRAWS, seed: int = 1) -> float:
    """The expected gain of knowing the true model, in dB: the mean over drawn models of the best proposal's quality
    minus that of the first. Draws are widened by the largest factor, since the model is overconfident."""
    rng = np.random.default_rng(seed)
    quality = np.stack([known.predicted(proposals, known.model.draw(rng, max(_SPREADS))) for _ in range(draws)])
    return float((quality.max(axis=1) - quality[:, 0]).mean())


def _noise(known: Evidence, left: int) -> float:
    """Standard error, in dB, of the difference of two candidates that share the ``left`` images."""
    noise = known.model.noise
    if len(noise) < 3 or left < 2:
        return 0.0
    return float(_DECIBELS * noise[2] * np.sqrt(2 * FEW / (left / 2)))


def _fits(known: Evidence, configuration: Configuration, nbytes: int, allowed: Allowed) -> bool:
    return allowed.permits(configuration) and known.space.nbytes(configuration) <= nbytes


def _candidates(known: Evidence, nbytes: int, allowed: Allowed, seed: int) -> list[Configuration]:
    """The finalists: the simple programs' configurations, and those of the highest expected quality among measured
    ones and proposals of the model and of draws from it.

    They are ranked by the model, not by their own measurement: four images say less about a candidate than all other
    measurements do.
    """

    def best(values: Values, count: int = 1) -> list[Configuration]:
        return list(best_configurations(known.space, values, nbytes, count, allowed))

    rng = np.random.default_rng([seed, len(known.measured)])
    rivals = [c for values in _simple(known) for c in best(values)]
    pool = [m.configuration for m in known.measured if m.kind == 2 and _fits(known, m.configuration, nbytes, allowed)]
    pool += best(most_likely(known), _FINALISTS // 2)
    pool += [c for _ in range(_FINALISTS) for c in best(drawn(known, rng))]
    pool = [c for c in dict.fromkeys(pool) if c not in rivals]
    order = np.argsort(-known.predicted(pool), kind="stable")
    return _unlike([pool[i] for i in order], _FINALISTS - len(rivals)) + rivals


def _unlike(ordered: list[Configuration], count: int) -> list[Configuration]:
    """The first ``count`` of which no two are nearly equal: measuring both would tell nothing."""
    found: list[Configuration] = []
    for one in ordered:
        least = max(1, len(one) // _LIKE)
        if all(sum(one[n] != other.get(n) for n in one) >= least for other in found):
            found.append(one)
    return found[:count]


def _decide(study: Workspace, log: SearchLog, progress: Progress) -> tuple[Candidate, dict[str, Any]]:
    """Successive halving on images of their own: (the winner, further fields of its choice)."""
    assert log.finals is not None
    candidates, images = log.finals.configurations, log.images - log.finals.spent
    remaining = list(range(len(candidates)))
    measured: dict[int, list[Measurement]] = {i: [] for i in remaining}
    for count, part in schedule(len(candidates), _FINAL_IMAGES, images):
        remaining = remaining[:count]
        fresh = FINALS.images(len(part), skip=part.start)
        what = f"finalists on {len(fresh)} fresh images"
        rows = measure_all(study, "final", [candidates[i] for i in remaining], fresh, what, progress)
        for i, row in zip(remaining, rows):
            if row is not None:
                measured[i].append(row)
        remaining = [i for i, row in zip(remaining, rows) if row is not None]
        if not remaining:
            break
        values = np.array([_quality(study, measured[i]) for i in remaining])
        remaining = [remaining[j] for j in survivors(values, len(remaining))]
    quality = {i: _quality(study, rows) for i, rows in measured.items() if rows}
    if not quality:
        raise Qua2SeDiMoError("no finalist could be measured", "`qua2sedimo records` has the errors.")
    last = max(map(len, quality.values()))
    finalists = sorted((i for i, v in quality.items() if len(v) == last), key=lambda i: -float(quality[i].mean()))
    expected, space = log.finals.expected, study.space
    rows_kept = {
        i: Candidate(
            origin="search", configuration=candidates[i], average_bits=space.average_bits(candidates[i]),
            predicted=expected[i], measured=_means(measured[i]),
        )
        for i in quality
    }  # fmt: skip
    p_value = paired_p(quality[finalists[0]], quality[finalists[1]]) if len(finalists) > 1 else None
    return rows_kept[finalists[0]], {"candidates": list(rows_kept.values()), "p_value": p_value}


def _quality(study: Workspace, rows: Sequence[Measurement]) -> np.ndarray:
    """The objective of each image of several measurements [images]."""
    return np.concatenate([per_image(study, row) for row in rows])


def _means(rows: Sequence[Measurement]) -> dict[str, float]:
    """Every paired metric's mean over the images of several measurements."""
    return {name: float(np.concatenate([row.values[name] for row in rows]).mean()) for name in rows[0].values}
