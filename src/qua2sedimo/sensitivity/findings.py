"""Plain sentences about sensitivity, only where the folds agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qua2sedimo.sensitivity.steps import standard_error
from qua2sedimo.sensitivity.tables import LayerStep

_SURE = 2.5  # standard errors over folds


def findings(steps: Sequence[LayerStep], unit: str = "") -> list[str]:
    """What 4 → 3 bits costs most and least, by operation, stage, block and layer.

    A group is said to cost most if it costs more than the second in nearly every fold: if the mean over folds of the
    difference, of means over layers, exceeds 2.5 of its standard errors; least likewise. Groups of the same layers, as
    a stage of one block, are named once.
    """
    said: list[str] = []
    named: set[tuple[str, ...]] = set()
    for by, noun in (("operation", "layer"), ("stage", "layer"), ("block", "layer"), ("name", "")):
        groups: dict[str, list[LayerStep]] = {}
        for item in steps:
            groups.setdefault(str(getattr(item.layer, by)), []).append(item)
        costs = {name: np.mean([s.step.folds for s in members], axis=0) for name, members in groups.items()}
        order = sorted(costs, key=lambda name: -float(costs[name].mean()))
        if len(order) < 3:
            continue
        what = f" a {noun}" if noun else ""
        for extreme, rival, word in ((order[0], order[1], "most"), (order[-1], order[-2], "least")):
            difference = costs[extreme] - costs[rival]
            sure = abs(difference.mean()) > _SURE * standard_error(difference.tolist())
            if sure and (word == "most") == (difference.mean() > 0) and (noun or word == "most"):
                layers = word, *sorted(s.layer.name for s in groups[extreme])
                if layers in named:
                    continue
                named.add(layers)
                said.append(f"{extreme}: 4 → 3 bits costs the {word}, {_with_spread(costs[extreme], unit)}{what}.")
    return said


def _with_spread(folds: np.ndarray, unit: str) -> str:
    mean, spread = float(folds.mean()), standard_error(folds.tolist())
    digits = max(0, min(4, 1 - int(np.floor(np.log10(spread))))) if 0 < spread < np.inf else 2
    return f"{mean:.{digits}f} ± {spread:.{digits}f}" + (f" {unit}" if unit else "")
