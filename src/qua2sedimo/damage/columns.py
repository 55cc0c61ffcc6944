"""Features of every option of every layer, and the prior of what each feature says about damage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import Graph
from qua2sedimo.options import SearchSpace
from qua2sedimo.quantizers import METHODS

SMALLEST_ERROR = 1e-9  # an exact option would have ln 0
#: Mean and standard deviation of each group's weights. Damage grows with the error at a power a little above one, its
#: level is unknown; operations, blocks and layers differ by factors of about e^1.2, methods of equal error by e^0.4.
_PRIOR = {
    "error": (1.2, 0.7),
    "level": (0.0, 5.0),
    "bits": (0.0, 0.02),
    "average bits": (0.0, 0.02),
    "weights": (0.0, 0.6),
    "depth": (0.0, 0.6),
    "method": (0.0, 0.4),
    "operation": (0.0, 1.2),
    "block": (0.0, 1.2),
    "layer": (0.0, 1.2),
}
#: The same where gradients are known. The squared change of the output that they expect, the cost, tells layers apart.
#: But it holds for small errors, and is estimated from few calls, so that a choice picks what looks cheap by chance:
#: damage is better expected to grow with its power of 0.8 and the relative error's of 0.2 (docs/method.md). Less is
#: then left to differ between operations, blocks and layers.
_INFORMED = _PRIOR | {
    "error": (0.2, 0.3),
    "cost": (0.8, 0.2),
    "weights": (0.0, 0.3),
    "depth": (0.0, 0.3),
    "operation": (0.0, 0.4),
    "block": (0.0, 0.4),
    "layer": (0.0, 0.4),
}
#: Standard deviation of what is an option's own: errors of one size point in different directions, and some hurt more.
_OWN = 0.4


@dataclass(frozen=True, eq=False)
class Features:
    """Features of every option of every layer, and the normal prior of their weights.

    ``groups`` names the columns. The groups "error" and "cost", of which the latter is there only with gradients, grow
    with the option's error; "level" is 1 everywhere. ``own`` is the prior standard deviation of each option's own
    effect, which no feature tells; with 0 there is none.

    Shapes:
        values: [layers, options, features], padded where ``offered`` [layers, options] is not; mean, deviation:
        [features].
    """

    values: np.ndarray
    offered: np.ndarray
    groups: Mapping[str, slice]
    mean: np.ndarray
    deviation: np.ndarray
    own: float = 0.0

    @property
    def powers(self) -> list[slice]:
        """The columns whose weights are powers of an error: more of it is never better."""
        return [self.groups[name] for name in ("error", "cost") if name in self.groups]

    def only(self, *groups: str) -> Features:
        """Of these groups those that are known, without effects of single options."""
        groups = tuple(name for name in groups if name in self.groups)
        columns = np.concatenate([np.arange(self.mean.size)[self.groups[name]] for name in groups])
        places = _places({name: self.mean[self.groups[name]].size for name in groups})
        return Features(self.values[..., columns], self.offered, places, self.mean[columns], self.deviation[columns])

    def differing(self, factor: float) -> Features:
        """The same if options of equal error and cost differ ``factor`` times as much as this prior expects."""
        deviation = self.deviation.copy()
        for name, columns in self.groups.items():
            if name not in ("error", "cost", "level"):
                deviation[columns] *= factor
        return replace(self, deviation=deviation, own=factor * self.own)

    def believing(self, deviations: Mapping[str, float]) -> Features:
        """The same with prior standard deviations of groups of at most these, and without effects of single options."""
        deviation = self.deviation.copy()
        for name, of in deviations.items():
            deviation[self.groups[name]] = np.minimum(deviation[self.groups[name]], of)
        return replace(self, deviation=deviation, own=0.0)


def option_features(graph: Graph, space: SearchSpace, bank: Bank) -> Features:
    """Features of the options of a space: ln of the relative error, centred; the level; then, standardised over all
    options, bits, average bits, ln weights and depth; then, if gradients are known, ln of the cost, centred; then
    one-hot method, operation type, block, and the layer itself."""
    layers = [graph.layers[name] for name in space.layers]
    most = max(len(options) for options in space.options.values())
    error = np.zeros((len(layers), most, 1))
    continuous = np.zeros((len(layers), most, 4))
    methods = [name for name in METHODS if any(o.method == name for o in space.union)]
    method = np.zeros((len(layers), most, len(methods)))
    offered = np.zeros((len(layers), most), dtype=bool)
    for i, layer in enumerate(layers):
        depth = graph.index[layer.name] / len(graph.nodes)
        for j, option in enumerate(space.options[layer.name]):
            offered[i, j] = True
            error[i, j] = math.log(bank.errors[layer.name][option].relative + SMALLEST_ERROR)
            bits = 8 * option.nbytes(layer.shape) / layer.weights
            continuous[i, j] = option.bits, bits, math.log(layer.weights), depth
            method[i, j, methods.index(option.method)] = 1
    error -= error[offered].mean()
    mean, deviation = continuous[offered].mean(axis=0), continuous[offered].std(axis=0)
    continuous = (continuous - mean) / np.where(deviation > 0, deviation, 1)
    hot = {name: _one_hot([getattr(layer, of) for layer in layers])
           for name, of in (("operation", "operation"), ("block", "block"), ("layer", "name"))}  # fmt: skip
    columns = {
        "error": error,
        "level": np.ones_like(error),
        **{name: continuous[..., [i]] for i, name in enumerate(("bits", "average bits", "weights", "depth"))},
        **_cost(space, bank, offered),
        "method": method,
        **{name: np.broadcast_to(of[:, None], (len(layers), most, of.shape[1])) for name, of in hot.items()},
    }
    groups = _places({name: of.shape[2] for name, of in columns.items()})
    prior = _INFORMED if "cost" in columns else _PRIOR
    beliefs = np.concatenate([np.tile(prior[name], (of.shape[2], 1)) for name, of in columns.items()])
    return Features(np.concatenate(list(columns.values()), axis=2), offered, groups, beliefs[:, 0], beliefs[:, 1], _OWN)


def _cost(space: SearchSpace, bank: Bank, offered: np.ndarray) -> dict[str, np.ndarray]:
    """ln of the cost of every option, centred: [layers, options, 1]; nothing without gradients."""
    costs = bank.costs()
    if costs is None:
        return {}
    least = SMALLEST_ERROR * max(cost for of in costs.values() for cost in of.values())
    column = np.zeros((*offered.shape, 1))
    for i, name in enumerate(space.layers):
        for j, option in enumerate(space.options[name]):
            column[i, j] = math.log(costs[name][option] + least)
    return {"cost": column - column[offered].mean()}


def _places(widths: Mapping[str, int]) -> dict[str, slice]:
    """Consecutive columns of groups of these widths."""
    ends = np.cumsum(list(widths.values()))
    return {name: slice(int(end) - width, int(end)) for (name, width), end in zip(widths.items(), ends)}


def _one_hot(names: Sequence[str]) -> np.ndarray:
    """[names, distinct names], in order of first appearance."""
    distinct = list(dict.fromkeys(names))
    return np.array([[name == other for other in distinct] for name in names], dtype=np.float64)
