"""Fitting and explaining: from a study's records to the predictor and its scores."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from qua2sedimo.denoisers.subgraphs import roots, subgraphs
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json
from qua2sedimo.predictor import Alone, Ensemble, FitSettings, fit_ensemble
from qua2sedimo.predictor.ensemble import FORMAT
from qua2sedimo.records import Record
from qua2sedimo.sensitivity import (
    BlockScores,
    Scores,
    Sensitivity,
    block_scores,
    op_scores,
    option_effects,
    write_tables,
)
from qua2sedimo.system.progress import Progress, silent

if TYPE_CHECKING:
    from qua2sedimo.study.facade import Study


def fit(study: Study, settings: FitSettings | None = None, progress: Progress = silent) -> Ensemble:
    """Fit the predictor to the sampled records, or load it if it was fitted to just these."""
    settings = settings or FitSettings(loss=study.settings.loss, seed=study.settings.seed)
    records = samples(study)
    alone = layers_alone(study)
    owner = _owner(study, [*records, *alone]) + json.dumps(asdict(settings), sort_keys=True)
    folder = study.folder / "predictor"
    summary = folder / "predictor.json"
    if summary.exists() and (found := read_json(summary)).get("owner") == owner and found.get("format") == FORMAT:
        return Ensemble.load(folder, owner)
    choices, objective = training_data(study, records)
    total = settings.folds * settings.epochs
    ensemble = fit_ensemble(
        study.encoding,
        choices,
        objective,
        settings,
        lambda fold, epoch: progress(fold * settings.epochs + epoch, total, "fitting the predictor"),
        hop_roots(study, settings.hops),
        (folder, owner),
        as_alone(study, alone),
    )
    ensemble.save(folder, owner)
    return ensemble


def hop_roots(study: Study, hops: int) -> list[torch.Tensor]:
    """Nodes ranked at each hop: every layer at hop 0, behind it the roots of blocks, all nodes if there are none."""
    blocks = roots(subgraphs(study.graph, hops), hops) if hops else [[]]
    everywhere = torch.arange(study.encoding.nodes)
    found = [torch.tensor(nodes) if nodes else everywhere for nodes in blocks[1:]]
    return [study.encoding.layer_nodes, *found]


def training_data(study: Study, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """(option indices [records, layers], objective [records], higher is better)."""
    choices = np.stack([study.space.encode(r.configuration) for r in records])
    return choices, np.array([study.objective.gain(r) for r in records])


def layers_alone(study: Study) -> list[Record]:
    """Records of one layer alone that tell its damage: none where the objective is not one metric in decibels.

    Size is no part of such an objective, and an option without any error has no logarithm.
    """
    if not study.objective.in_decibels:
        return []
    return [r for r in study.records.all("single") if math.isfinite(study.objective.gain(r))]


def as_alone(study: Study, records: Sequence[Record]) -> Alone | None:
    """Records of one layer alone as the predictor reads them; None without any."""
    if not records:
        return None
    space = study.space
    chosen = [next(iter(record.configuration.items())) for record in records]
    return Alone(
        np.array([space.layers.index(layer) for layer, _ in chosen]),
        np.array([space.options[layer].index(option) for layer, option in chosen]),
        np.array([study.objective.gain(record) for record in records]),
    )


def fitted(study: Study) -> tuple[Ensemble, str]:
    """(the predictor, the name of the fit); raises if there is none for this study."""
    path = study.folder / "predictor" / "predictor.json"
    if not path.exists():
        raise Qua2SeDiMoError(f"{study.folder} has no predictor", f"Run `qua2sedimo fit {study.folder}` first.")
    owner = str(read_json(path).get("owner"))
    if not owner.startswith(study.identity):
        raise Qua2SeDiMoError(f"{path} was fitted to another space", f"Run `qua2sedimo fit {study.folder}` again.")
    return Ensemble.load(path.parent, owner), owner


def explain(study: Study) -> Scores:
    """Score every option of every layer, and leave the scores in sensitivity.json."""
    ensemble, owner = fitted(study)
    scores = op_scores(study.space, study.encoding, ensemble)
    scores.save(study.folder / "sensitivity.json", owner)
    return scores


def block_scores_of(study: Study) -> BlockScores:
    """Score every setting of every block."""
    return block_scores(study.graph, study.space, study.encoding, fitted(study)[0])


def sensitivity(study: Study, ending: str = "csv") -> Sensitivity:
    """Scores, and what each option is expected to cost the objective.

    The tables are left in sensitivity.csv and sensitivity-groups.csv, or with the ending "parquet".
    """
    ensemble, scores = fitted(study)[0], explain(study)
    effects = option_effects(study.space, study.encoding, ensemble, *training_data(study, samples(study)))
    found = Sensitivity(study.graph.layers, study.space, study.bank, scores, effects, study.objective.unit)
    write_tables(found.rows, found.steps, study.folder, ending)
    return found


def samples(study: Study) -> list[Record]:
    """The measured random configurations; raises if there are none."""
    records = study.records.all("sample")
    if not records:
        raise Qua2SeDiMoError(
            f"{study.folder} has no measured configurations",
            f"Run `qua2sedimo measure {study.folder}` first.",
        )
    return records


def _owner(study: Study, records: Iterable[Record]) -> str:
    measured = zlib.crc32(" ".join(f"{r.number}:{r.configuration.digest}" for r in records).encode())
    return f"{study.identity} {study.settings.protocol} {measured:08x} "
