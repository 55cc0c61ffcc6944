"""What other sizes would be like, by gradients alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count

from qua2sedimo.options import Configuration, Option
from qua2sedimo.report.data import OtherSize
from qua2sedimo.search import best_configurations, by_gradients, kept_bytes
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.workspace import Workspace

_STEP, _MOST = 0.25, 6.0  # average bits


def other_sizes(study: Workspace, choice: Choice) -> list[OtherSize]:
    """The choice of least expected damage at every quarter of a bit, beside what is expected of ``choice``; empty
    without gradients, or if nothing is expected of it."""
    features = study.unmeasured
    if not study.settings.compensates or "cost" not in features.features.groups:
        return []
    values, space = by_gradients(features), study.space
    ours = _damage(choice.configuration, values)
    if not ours > 0:
        return []
    least = sum(min(o.nbytes(shape) for o in space.options[n]) for n, shape in space.shapes.items())
    found: list[OtherSize] = []
    for number in count(math.ceil(8 * least / space.weights / _STEP)):
        bits = number * _STEP
        configuration = next(best_configurations(space, values, int(bits * space.weights / 8)), None)
        if bits > _MOST or configuration is None:
            return found
        damage = _damage(configuration, values)
        found.append(
            OtherSize(
                bits,
                space.nbytes(configuration),
                10 * math.log10(ours / damage) if damage > 0 else math.inf,
                _by_operation(study, configuration),
            )
        )
    return found


def _damage(configuration: Mapping[str, Option], values: Mapping[str, Mapping[Option, float]]) -> float:
    return -sum(values[layer][option] for layer, option in configuration.items() if option in values[layer])


def _by_operation(study: Workspace, configuration: Configuration) -> dict[str, float]:
    """Average bits of the weights of each operation."""
    sums: dict[str, list[float]] = {}
    for layer in study.space.layers:
        shape, unit = study.space.shapes[layer], study.graph.layers[layer]
        option = configuration.get(layer)
        nbytes = option.nbytes(shape) if option is not None else kept_bytes(shape)
        of = sums.setdefault(unit.operation, [0.0, 0.0])
        of[0] += 8 * nbytes
        of[1] += math.prod(shape)
    return {operation: bits / weights for operation, (bits, weights) in sums.items()}
