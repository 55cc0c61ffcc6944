"""Op-level scores: the standardised, weighted norm of a layer's embedding at hop 0, for each of its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import Document
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.predictor import Encoding, Ensemble
from qua2sedimo.predictor.network import norms


@dataclass(frozen=True)
class OptionScore:
    """Score of one option of one layer: higher is better for quality; ``spread`` over folds (standard error)."""

    score: float
    spread: float
    folds: tuple[float, ...]


@dataclass(frozen=True)
class Scores:
    """Scores of every option of every layer."""

    layers: Mapping[str, Mapping[Option, OptionScore]]

    @property
    def folds(self) -> int:
        """Number of folds that scored."""
        return len(next(iter(next(iter(self.layers.values())).values())).folds)

    def fold(self, number: int) -> dict[str, dict[Option, float]]:
        """The scores of one fold alone."""
        return {layer: {o: s.folds[number] for o, s in options.items()} for layer, options in self.layers.items()}

    def total(self) -> dict[str, dict[Option, float]]:
        """The scores summed over folds."""
        return {layer: {o: s.score for o, s in options.items()} for layer, options in self.layers.items()}

    def level(self, space: SearchSpace, choices: np.ndarray) -> np.ndarray:
        """Whole configurations at op level: the sum over layers of the score of the layer's option.

        Shapes:
            choices: option indices [configurations, layers] → [configurations, folds].
        """
        total = np.zeros((len(choices), self.folds))
        for layer, chosen in zip(space.layers, choices.T):
            total += np.array([self.layers[layer][o].folds for o in space.options[layer]])[chosen]
        return total

    def save(self, path: Path, owner: str) -> None:
        """Write the scores of every fold as JSON; ``owner`` names the fit they belong to."""
        content = {layer: {str(o): list(s.folds) for o, s in options.items()} for layer, options in self.layers.items()}
        ScoresFile(owner=owner, scores=content).save(path)

    @classmethod
    def load(cls, path: Path, owner: str) -> Scores:
        """Read what :meth:`save` wrote; raises :class:`Qua2SeDiMoError` if damaged or of another fit."""
        content = ScoresFile.load(path)
        if content.owner != owner:
            raise Qua2SeDiMoError(f"{path} belongs to another fit", ScoresFile.remedy)
        return cls(
            {
                layer: {Option.parse(o): _summary(np.array(folds)) for o, folds in options.items()}
                for layer, options in content.scores.items()
            }
        )


class ScoresFile(Document):
    """sensitivity.json: layer → option → score of each fold."""

    remedy: ClassVar[str] = "Run `qua2sedimo explain` again."

    indent: ClassVar[int | None] = None

    format: Literal[1] = 1
    owner: str
    scores: dict[str, dict[str, list[float]]]


@torch.no_grad()
def op_scores(space: SearchSpace, encoding: Encoding, ensemble: Ensemble) -> Scores:
    """(‖h_v⁰‖₁ − μ₀)/σ₀ · w₀ of each option, per fold; μ₀, σ₀ over all options of all layers, w₀ the hop's weight.

    Every layer is encoded by the function that training used. Raises if no fold's hop 0 ranks its validation
    records at all, since every score would be 0.
    """
    if all(fold.hop_weights[0] == 0 for fold in ensemble.folds):
        raise Qua2SeDiMoError(
            "no fold of the predictor ranks configurations better than chance at hop 0",
            "Measure more configurations or more images each, then fit again.",
        )
    offered = encoding.offered.numpy()
    by_fold = []
    for fold in ensemble.folds:
        values = norms(fold.network.embed(encoding.options())).numpy()
        mean, deviation = values[offered].mean(), values[offered].std()
        by_fold.append((values - mean) / max(deviation, 1e-9) * fold.hop_weights[0])
    stacked = np.stack(by_fold, axis=-1)  # [layers, options, folds]
    return Scores(
        {
            layer: {option: _summary(stacked[i, j]) for j, option in enumerate(space.options[layer])}
            for i, layer in enumerate(space.layers)
        }
    )


def _summary(folds: np.ndarray) -> OptionScore:
    spread = float(folds.std(ddof=1) * np.sqrt(len(folds))) if len(folds) > 1 else 0.0
    return OptionScore(float(folds.sum()), spread, tuple(float(f) for f in folds))
