"""Fitting: from a study's records to its predictor."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict

import numpy as np
import torch

from qua2sedimo.denoisers.subgraphs import roots, subgraphs
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.text import command
from qua2sedimo.predictor import Ensemble, FitSettings, fit_ensemble
from qua2sedimo.predictor.ensemble import PredictorFile
from qua2sedimo.records import Record
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


def fit(study: Workspace, settings: FitSettings | None = None, progress: Progress = silent) -> Ensemble:
    """Fit the predictor to the recorded samples and single layers, or load it if it was fitted to exactly these."""
    settings = settings or FitSettings(loss=study.settings.loss, seed=study.settings.seed)
    records, alone_records = samples(study), layers_alone(study)
    owner = _owner(study, [*records, *alone_records]) + json.dumps(asdict(settings), sort_keys=True)
    folder = study.folder / "predictor"
    with alone(folder, lambda: progress(0, 1, "waiting for another process that fits")):
        if kept_owner(study) == owner:
            with suppress(Qua2SeDiMoError):  # a damaged fold is fitted again, the others are kept
                return Ensemble.load(folder, owner)
        return _fitted_now(study, settings, records, alone_records, owner, progress)


def _fitted_now(
    study: Workspace, settings: FitSettings, records: list[Record], layers: list[Record], owner: str, progress: Progress
) -> Ensemble:
    """Fit the predictor to samples and to layers measured alone, and store it."""
    folder = study.folder / "predictor"
    choices, objective = training_data(study, records)
    total = settings.folds * settings.epochs
    ensemble = fit_ensemble(
        study.encoding, choices, objective, settings,
        lambda fold, epoch: progress(fold * settings.epochs + epoch, total, "fitting the predictor"),
        hop_roots(study, settings.hops), (folder, owner), alone_data(study, layers),
    )  # fmt: skip
    progress(total, total, "fitting the predictor")
    numbers = (tuple(record.number for record in of) for of in (records, layers))
    ensemble = Ensemble(ensemble.folds, *numbers)
    ensemble.save(folder, owner)
    return ensemble


def kept_owner(study: Workspace) -> str | None:
    """The owner of the stored predictor, which names what it was fitted to; None if none can be read."""
    path = study.folder / "predictor" / "predictor.json"
    try:
        return PredictorFile.load(path).owner if path.exists() else None
    except Qua2SeDiMoError:  # of an earlier format, or damaged
        return None


def hop_roots(study: Workspace, hops: int) -> list[torch.Tensor]:
    """Nodes ranked at each hop: the layers at hop 0, then the roots of blocks, or all nodes if there are none."""
    blocks = roots(subgraphs(study.graph, hops), hops) if hops else [[]]
    everywhere = torch.arange(study.encoding.nodes)
    found = [torch.tensor(nodes) if nodes else everywhere for nodes in blocks[1:]]
    return [study.encoding.layer_nodes, *found]


def training_data(study: Workspace, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """(option indices [records, layers], objective [records], higher is better)."""
    choices = np.stack([study.space.encode(r.configuration) for r in records])
    return choices, np.array([study.objective.gain(r) for r in records])


def layers_alone(study: Workspace) -> list[Record]:
    """Records of single layers from which damage can be computed: only if the objective is in decibels.

    Such an objective does not include size. An option without any error has no finite value, and is left out.
    """
    if not study.objective.in_decibels:
        return []
    return [r for r in study.learning_records("single") if math.isfinite(study.objective.gain(r))]


def alone_data(study: Workspace, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray] | None:
    """As :func:`training_data`, for records of single layers: −1 for layers in 16 bits; None without records."""
    if not records:
        return None
    choices = study.space.encode_partial([r.configuration for r in records])
    return choices, np.array([study.objective.gain(r) for r in records])


def fitted(study: Workspace) -> tuple[Ensemble, str]:
    """(predictor, owner); raises :class:`Qua2SeDiMoError` if there is none for this study's space and weights."""
    path = study.folder / "predictor" / "predictor.json"
    if not path.exists():
        raise Qua2SeDiMoError(f"{study.folder} has no predictor", f"Run `{command('fit', study.folder)}` first.")
    owner = PredictorFile.load(path).owner
    if not owner.startswith(study.identity):
        raise Qua2SeDiMoError(f"{path} was fitted to another space", f"Run `{command('fit', study.folder)}` again.")
    return Ensemble.load(path.parent, owner), owner


def fitted_records(study: Workspace) -> list[Record]:
    """The samples that the predictor was fitted to, in its order, without those measured since.

    Raises :class:`Qua2SeDiMoError` if records.db does not hold them any more.
    """
    ensemble, owner = fitted(study)
    known = {(r.role, r.number): r for r in (*samples(study), *layers_alone(study))}
    found = [known.get(("sample", number)) for number in ensemble.records]
    alone = [known.get(("single", number)) for number in ensemble.alone]
    there = [r for r in found if r is not None]
    if None in found or None in alone or not owner.startswith(_owner(study, [r for r in (*found, *alone) if r])):
        raise Qua2SeDiMoError(
            f"the predictor in {study.folder} was fitted to records that records.db does not hold any more",
            f"Run `{command('fit', study.folder)}` again.",
        )
    return there


def samples_since(study: Workspace, ensemble: Ensemble) -> int:
    """Number of samples measured since the predictor was fitted."""
    return len({record.number for record in samples(study)} - set(ensemble.records))


def samples(study: Workspace) -> list[Record]:
    """The measured random configurations; raises :class:`Qua2SeDiMoError` if there are none."""
    records = study.learning_records("sample")
    if not records:
        remedy = f"Run `{command('measure', study.folder)}` first."
        raise Qua2SeDiMoError(f"{study.folder} has no measured configurations", remedy)
    return records


def _owner(study: Workspace, records: Iterable[Record]) -> str:
    measured = zlib.crc32(" ".join(f"{r.number}:{r.configuration.digest}" for r in records).encode())
    return f"{study.identity} {study.settings.protocol} {measured:08x} "
