"""Explaining: from the predictor to a score and an expected cost of every option."""

from __future__ import annotations

from collections.abc import Sequence

from qua2sedimo.search import one_at_a_time
from qua2sedimo.sensitivity import (
    BlockScores,
    ExpectedDamage,
    Scores,
    Sensitivity,
    Source,
    at_width,
    block_scores,
    expected_damage,
    op_scores,
    option_effects,
    sources,
    write_expected,
    write_tables,
)
from qua2sedimo.study.evidence import evidence
from qua2sedimo.study.stages.fit import fitted, fitted_records, training_data
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def explain(study: Workspace) -> Scores:
    """Score every option of every layer; the scores are stored in sensitivity.json."""
    ensemble, owner = fitted(study)
    scores = op_scores(study.space, study.encoding, ensemble)
    scores.save(study.folder / "sensitivity.json", owner)
    return scores


def expected(study: Workspace, ending: str = "csv", progress: Progress = silent) -> list[ExpectedDamage]:
    """Where damage is expected at about three bits, most first, before a picture is measured; empty without statistics.

    The rows are stored in sensitivity-expected.csv, or with the extension .parquet.
    """
    rows = expected_damage(study.graph.layers, study.build_bank(progress))
    if rows:
        write_expected(rows, study.folder / f"sensitivity-expected.{ending}")
    return rows


def known_sources(study: Workspace, expected: Sequence[ExpectedDamage], found: Sensitivity | None) -> list[Source]:
    """What is known of layers: from gradients, from records if there is a predictor (``found``), and from layers
    measured alone if all of them were and the objective is in decibels."""
    space, bank = study.space, study.bank
    alone: dict[str, float] = {}
    if study.objective.in_decibels:
        singles = evidence(study, ["single"])
        if {name for m in singles.measured for name in m.configuration} >= set(space.layers):
            values = one_at_a_time(singles)
            for name in space.layers:
                option, factor = at_width(bank, name)
                alone[name] = -values[name][option] * factor
    return sources(expected, bank.changes.source, found.steps if found is not None else [], alone)


def block_scores_of(study: Workspace) -> BlockScores:
    """Score every setting of every block."""
    return block_scores(study.graph, study.space, study.encoding, fitted(study)[0])


def sensitivity(study: Workspace, ending: str = "csv") -> Sensitivity:
    """Scores, and each option's expected cost in the objective.

    The tables are stored in sensitivity.csv and sensitivity-groups.csv, or with the extension .parquet.
    """
    ensemble, scores, records = fitted(study)[0], explain(study), fitted_records(study)
    effects = option_effects(study.space, study.encoding, ensemble, *training_data(study, records))
    found = Sensitivity(study.graph.layers, study.space, study.bank, scores, effects, study.objective.unit)
    write_tables(found.rows, found.steps, study.folder, ending)
    return found
