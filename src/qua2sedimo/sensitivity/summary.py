"""All that is known of a study's sensitivity, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.options import SearchSpace
from qua2sedimo.sensitivity.effects import Effects
from qua2sedimo.sensitivity.findings import findings
from qua2sedimo.sensitivity.scores import Scores
from qua2sedimo.sensitivity.tables import LayerStep, OptionRow, layer_steps, option_rows


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Scores and expected effects of every option of every layer; ``unit`` is the objective's."""

    layers: Mapping[str, WeightLayer]
    space: SearchSpace
    bank: Bank
    scores: Scores
    effects: Effects
    unit: str

    @cached_property
    def rows(self) -> list[OptionRow]:
        """A row for each option of each layer, in the order of the data."""
        return option_rows(self.layers, self.space, self.bank, self.scores, self.effects)

    @cached_property
    def steps(self) -> list[LayerStep]:
        """What 4 → 3 bits costs each layer, highest cost first."""
        return layer_steps(self.layers, self.space, self.effects)

    @cached_property
    def findings(self) -> list[str]:
        """Plain sentences; the chance that any of them is false is at most 5 %."""
        return findings(self.steps, self.unit, self.scores.folds)
