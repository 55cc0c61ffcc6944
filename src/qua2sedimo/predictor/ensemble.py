"""Five folds of the predictor: trained, selected and tested on different records, each saved once it is fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import Document
from qua2sedimo.formats.sealed import load_tensors, save_tensors
from qua2sedimo.predictor.encoding import Encoding
from qua2sedimo.predictor.network import HopNetwork
from qua2sedimo.predictor.training import Data, FitSettings, predict, train

_REFIT = "Run `qua2sedimo fit` again."


@dataclass(frozen=True)
class Fold:
    """A trained network and the range [``low``, ``high``] of the objective that it was scaled by.

    ``hop_weights``: validation rank correlation of each hop's norm with the objective, never negative.
    ``roots``: nodes pooled at each hop.
    ``test``, ``predicted``: positions of the test records, which neither trained nor selected it, and predictions of
    their objective.
    """

    network: HopNetwork
    low: float
    high: float
    hop_weights: list[float]
    test: list[int]
    predicted: list[float]
    roots: list[list[int]]

    def quality(self, encoding: Encoding, choices: np.ndarray) -> np.ndarray:
        """Objective predicted for option indices [configurations, layers]: [configurations]."""
        data = Data(encoding, choices, np.empty(0), [torch.tensor(r) for r in self.roots])
        return predict(self.network, data, np.arange(len(choices)))[0].numpy() * (self.high - self.low) + self.low

    def save(self, folder: Path, number: int, owner: str) -> None:
        """Write foldN.safetensors, then foldN.json, which says that the fold is complete."""
        (folder / f"fold{number}.json").unlink(missing_ok=True)
        state = {name: t.contiguous() for name, t in self.network.state_dict().items()}
        save_tensors(folder / f"fold{number}.safetensors", state)
        about = {k: v for k, v in vars(self).items() if k != "network"}
        FoldFile(owner=owner, shape=_shape(self.network), **about).save(folder / f"fold{number}.json")

    @classmethod
    def load(cls, folder: Path, number: int, owner: str) -> Fold:
        """Read what :meth:`save` wrote; raises :class:`Qua2SeDiMoError` if it is damaged or of another fit."""
        about = FoldFile.load(folder / f"fold{number}.json")
        if about.owner != owner:
            raise Qua2SeDiMoError(f"{folder}: fold {number} was fitted to other records or another space", _REFIT)
        state, _ = load_tensors(folder / f"fold{number}.safetensors", _REFIT)
        try:
            network = HopNetwork(*about.shape)
            network.load_state_dict(state)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Qua2SeDiMoError(f"{folder}: fold {number} cannot be read: {error!r}", _REFIT) from error
        return cls(network=network.eval(), **about.model_dump(exclude={"format", "owner", "shape"}))


class FoldFile(Document):
    """foldN.json: a :class:`Fold` but for its network, whose ``shape`` are the arguments that make it."""

    remedy: ClassVar[str] = _REFIT

    format: Literal[4] = 4
    owner: str
    shape: list[int]
    low: float
    high: float
    hop_weights: list[float]
    test: list[int]
    predicted: list[float]
    roots: list[list[int]]


class PredictorFile(Document):
    """predictor.json: the number of folds, and the numbers of the records they were fitted to."""

    remedy: ClassVar[str] = _REFIT

    format: Literal[4] = 4
    owner: str
    records: list[int]
    alone: list[int]
    folds: int


@dataclass(frozen=True)
class Ensemble:
    """The folds of a study's predictor; ``records``, ``alone``: numbers of the samples, and of the layers measured
    alone, that it was fitted to, where that is known.

    Positions in a fold (``test``) are positions in ``records``, whatever was measured since.
    """

    folds: list[Fold]
    records: tuple[int, ...] = ()
    alone: tuple[int, ...] = ()

    def out_of_fold(self) -> tuple[np.ndarray, np.ndarray]:
        """(positions [records], predictions [records] in the objective's unit), by folds that never saw the record."""
        pairs = sorted((p, y) for fold in self.folds for p, y in zip(fold.test, fold.predicted))
        return np.array([p for p, _ in pairs]), np.array([y for _, y in pairs])

    def predict(self, encoding: Encoding, choices: np.ndarray) -> np.ndarray:
        """Objective predicted for option indices [configurations, layers]: [folds, configurations]."""
        return np.stack([fold.quality(encoding, choices) for fold in self.folds])

    def save(self, folder: Path, owner: str) -> None:
        """Write two files a fold and predictor.json; ``owner`` names the study's space, records and settings."""
        (folder / "predictor.json").unlink(missing_ok=True)  # an old summary never stands beside new folds
        for number, fold in enumerate(self.folds):
            fold.save(folder, number, owner)
        records, alone = list(self.records), list(self.alone)
        about = PredictorFile(owner=owner, records=records, alone=alone, folds=len(self.folds))
        about.save(folder / "predictor.json")

    @classmethod
    def load(cls, folder: Path, owner: str) -> Ensemble:
        """Read the folds; raises :class:`Qua2SeDiMoError` if they are damaged or were fitted to something else."""
        about = PredictorFile.load(folder / "predictor.json")
        if about.owner != owner:
            raise Qua2SeDiMoError(f"{folder} was fitted to other records or another space", _REFIT)
        return cls([Fold.load(folder, i, owner) for i in range(about.folds)], tuple(about.records), tuple(about.alone))


def fit_ensemble(
    encoding: Encoding,
    choices: np.ndarray,
    objective: np.ndarray,
    settings: FitSettings,
    progress: Callable[[int, int], object] = lambda fold, epoch: None,
    roots: Sequence[torch.Tensor] | None = None,
    kept: tuple[Path, str] | None = None,
    alone: tuple[np.ndarray, np.ndarray] | None = None,
) -> Ensemble:
    """Fit the folds to option indices [records, layers] and objective values [records] (higher is better).

    The records are split into ``settings.folds`` parts; fold k is tested on part k, selected on part k + 1 and trained
    on the rest. Raises if there are fewer than four records a fold.

    Args:
        roots: for each hop, 0 included, the nodes whose mean embedding is ranked; by default all layers at hop 0 and
            all nodes at later hops.
        kept: folder and owner. Each fold is saved there once it is fitted, and read if it is there already, so that an
            interrupted fit continues. ``owner`` must name records and settings.
        alone: (option indices [n, layers], −1 where a layer is in 16 bits; objective [n]) of layers measured alone.
            All folds start from them; no fold is judged on them.
    """
    if len(objective) < 4 * settings.folds:
        raise Qua2SeDiMoError(
            f"{len(objective)} records are too few to fit {settings.folds} folds, {4 * settings.folds} are needed",
            "Run `qua2sedimo measure` for more.",
        )
    if roots is None:
        roots = [encoding.layer_nodes, *[torch.arange(encoding.nodes)] * settings.hops]
    if len(roots) != settings.hops + 1 or any(len(r) == 0 for r in roots):
        raise Qua2SeDiMoError(f"roots: {settings.hops + 1} non-empty lists of nodes are needed, one a hop")
    data = Data(encoding, choices, objective, roots, alone)
    order = np.random.default_rng(settings.seed).permutation(len(objective))
    parts = np.array_split(order, settings.folds)
    folds = []
    for k in range(settings.folds):
        fold = _kept(kept, k)
        if fold is None:
            fold = _fit_fold(data, parts, settings, k, progress)
            if kept is not None:
                fold.save(kept[0], k, kept[1])
        folds.append(fold)
        progress(k, settings.epochs)
    return Ensemble(folds)


def _kept(kept: tuple[Path, str] | None, number: int) -> Fold | None:
    """The fold that an interrupted fit of the same records and settings saved, if it can be read."""
    if kept is None or not (kept[0] / f"fold{number}.json").exists():
        return None
    try:
        return Fold.load(kept[0], number, kept[1])
    except Qua2SeDiMoError:  # damaged, or of other records or settings: it is fitted anew
        return None


def _fit_fold(
    data: Data, parts: Sequence[np.ndarray], settings: FitSettings, number: int, progress: Callable[[int, int], object]
) -> Fold:
    test, selection = parts[number], parts[(number + 1) % len(parts)]
    training = np.concatenate([p for i, p in enumerate(parts) if i not in (number, (number + 1) % len(parts))])
    network, scale, weights = train(data, training, selection, settings, number, progress)
    predicted = predict(network, data, test)[0].numpy() * (scale.high - scale.low) + scale.low
    roots = [[int(i) for i in r] for r in data.roots]
    return Fold(network, scale.low, scale.high, weights, [int(i) for i in test], [float(y) for y in predicted], roots)


def _shape(network: HopNetwork) -> list[int]:
    embed = network.embed
    return [embed.kind.in_features + 2, len(embed.own), embed.kind.out_features, len(network.hops)]
