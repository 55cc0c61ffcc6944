"""What a bit costs where: score lost from about 4 to about 3 bits, by layer, operation and block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.sensitivity.scores import Scores

#: Average bits, overhead counted, that pass as "4 bits" and as "3 bits".
_HIGH, _LOW = (3.5, 4.5), (2.5, 3.5)


@dataclass(frozen=True)
class StepCost:
    """Score a layer loses from its best ~4-bit to its best ~3-bit option, and its standard error over folds."""

    layer: str
    cost: float
    spread: float


def step_costs(space: SearchSpace, scores: Scores) -> list[StepCost]:
    """The cost of going from 4 to 3 bits for every layer that has options of both sizes, dearest first."""
    costs = []
    for layer in space.layers:
        high = _best(space, layer, scores.layers[layer], _HIGH)
        low = _best(space, layer, scores.layers[layer], _LOW)
        if high is None or low is None:
            continue
        folds = np.array(scores.layers[layer][high].folds) - np.array(scores.layers[layer][low].folds)
        costs.append(StepCost(layer, float(folds.sum()), float(folds.std(ddof=1) * np.sqrt(len(folds)))))
    return sorted(costs, key=lambda c: -c.cost)


def _best(space: SearchSpace, layer: str, scores: Mapping[Option, object], bits: tuple[float, float]) -> Option | None:
    weights = int(np.prod(space.shapes[layer]))
    inside = [o for o in scores if bits[0] < 8 * o.nbytes(space.shapes[layer]) / weights <= bits[1]]
    return max(inside, key=lambda o: scores[o].score, default=None)  # type: ignore[attr-defined]


def strip(costs: list[StepCost], layers: Mapping[str, WeightLayer], by: str) -> dict[str, tuple[float, float, int]]:
    """Mean cost, its standard error over folds, and the number of layers, by ``operation`` or ``block``."""
    groups: dict[str, list[StepCost]] = {}
    for cost in costs:
        groups.setdefault(str(getattr(layers[cost.layer], by)), []).append(cost)
    return {
        name: (
            float(np.mean([c.cost for c in group])),
            float(np.sqrt(np.mean([c.spread**2 for c in group]))),
            len(group),
        )
        for name, group in sorted(groups.items(), key=lambda item: -np.mean([c.cost for c in item[1]]))
    }
