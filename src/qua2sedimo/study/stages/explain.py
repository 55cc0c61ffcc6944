"""Explaining: from the predictor to a score and an expected cost of every option."""

from __future__ import annotations

from qua2sedimo.sensitivity import (
    BlockScores,
    Scores,
    Sensitivity,
    block_scores,
    op_scores,
    option_effects,
    write_tables,
)
from qua2sedimo.study.stages.fit import fitted, fitted_records, training_data
from qua2sedimo.study.workspace import Workspace


def explain(study: Workspace) -> Scores:
    """Score every option of every layer; the scores are stored in sensitivity.json."""
    ensemble, owner = fitted(study)
    scores = op_scores(study.space, study.encoding, ensemble)
    scores.save(study.folder / "sensitivity.json", owner)
    return scores


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
