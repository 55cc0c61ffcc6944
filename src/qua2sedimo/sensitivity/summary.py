"""All that is known of a study's sensitivity, in one value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.files import read_document, write_text
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.sensitivity.effects import Effects
from qua2sedimo.sensitivity.findings import findings
from qua2sedimo.sensitivity.scores import Scores
from qua2sedimo.sensitivity.tables import LayerStep, OptionRow, layer_steps, option_rows

FORMAT = 1
_REMEDY = "Delete it and run `qua2sedimo explain` again."


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
        """What 4 → 3 bits costs each layer, dearest first."""
        return layer_steps(self.layers, self.space, self.effects)

    @cached_property
    def findings(self) -> list[str]:
        """Plain sentences, only where the folds agree."""
        return findings(self.steps, self.unit)


def save_effects(effects: Effects, path: Path, owner: str) -> None:
    """Keep effects for the fit named ``owner``."""
    content = {layer: {str(o): list(folds) for o, folds in options.items()} for layer, options in effects.items()}
    write_text(path, json.dumps({"format": FORMAT, "owner": owner, "effects": content}))


def load_effects(path: Path, owner: str) -> Effects | None:
    """The effects kept for this fit; None if there are none, an error if the file is damaged."""
    if not path.exists():
        return None
    content = read_document(path, FORMAT, _REMEDY)
    if content.get("owner") != owner:
        return None
    try:
        return {
            layer: {Option.parse(o): tuple(float(f) for f in folds) for o, folds in options.items()}
            for layer, options in content["effects"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Qua2SeDiMoError(f"{path} is damaged: {error!r}", _REMEDY) from error
