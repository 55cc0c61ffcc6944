"""Settings of a block as values: one option a layer, with bytes and score, and those worth choosing from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qua2sedimo.denoisers.subgraphs import Subgraph
from qua2sedimo.options import Option
from qua2sedimo.search.pareto import pareto_front
from qua2sedimo.search.programs import Setting


@dataclass(frozen=True, eq=False)
class BlockSettings:
    """The settings of a block that were scored.

    ``settings``: int [settings, layers], positions in ``options``; ``nbytes``: int [settings], packed bytes with every
    overhead; ``scores``: [settings, folds]; ``possible``: how many settings there are. Where fewer were scored, they
    are the best that a beam found.
    """

    block: Subgraph
    layers: tuple[str, ...]
    options: tuple[tuple[Option, ...], ...]
    settings: np.ndarray
    nbytes: np.ndarray
    scores: np.ndarray
    possible: int

    @property
    def complete(self) -> bool:
        return len(self.settings) == self.possible

    def pareto(self, fold: int | None = None) -> list[Setting]:
        """Settings that no other one beats in bytes and score, smallest first.

        The score is the sum over folds, or that of one ``fold`` alone.
        """
        value = self.scores.sum(axis=1) if fold is None else self.scores[:, fold]
        return [self._setting(i, float(value[i]), fold is None) for i in pareto_front(self.nbytes, value)]

    def _setting(self, number: int, score: float, summed: bool) -> Setting:
        folds = self.scores[number]
        spread = float(folds.std(ddof=1) * np.sqrt(len(folds))) if summed and len(folds) > 1 else 0.0
        chosen = {n: o[j] for n, o, j in zip(self.layers, self.options, self.settings[number])}
        return Setting(chosen, int(self.nbytes[number]), score, spread)


@dataclass(frozen=True, eq=False)
class BlockScores:
    """Scores of the settings of every block, by the block's name, in the order of the data."""

    blocks: Mapping[str, BlockSettings]
    limit: int

    @property
    def folds(self) -> int:
        """Number of folds that scored."""
        return int(next(iter(self.blocks.values())).scores.shape[1])

    @property
    def scored(self) -> int:
        """Number of settings that were scored, of all blocks."""
        return sum(len(entry.settings) for entry in self.blocks.values())

    @property
    def notes(self) -> list[str]:
        """What a reader must know: where not every setting was scored."""
        partial = [entry for entry in self.blocks.values() if not entry.complete]
        if not partial:
            return []
        most = max(partial, key=lambda entry: entry.possible)
        return [
            f"{len(partial)} of {len(self.blocks)} blocks have more than {self.limit:,} settings ({most.block.name}: "
            f"{most.possible:,}); of these the best found by a beam were scored, not all."
        ]

    def pareto(self, block: str, fold: int | None = None) -> list[Setting]:
        """Settings of a block that no other one beats in bytes and score, smallest first."""
        return self.blocks[block].pareto(fold)
