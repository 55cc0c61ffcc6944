"""The stratified sampler: average bits evenly spaced, random mix of methods, correlated layers, uniform anchors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.sampling.tilt import STEEPEST, OptionTable

#: Every ANCHOR_EVERY-th configuration gives all layers the same option.
ANCHOR_EVERY = 8
_GOLDEN = (5**0.5 - 1) / 2
_CONCENTRATION = 0.5  # of the Dirichlet over methods: below 1, mixtures of almost one method are likely too
_HALVINGS = 40


def stratified(
    space: SearchSpace,
    seed: int,
    number: int,
    bits: tuple[float, float],
    groups: tuple[Sequence[str], Sequence[str]],
) -> Configuration:
    """Configuration ``number``: an anchor, or a draw with a target of average bits, evenly spaced in ``bits``.

    ``groups``: block and operation of each layer. Each layer has a standard normal z = √a · z(block) + √b ·
    z(operation) + √c · z(layer), with (a, b, c) ~ Dirichlet(1, 1, 1), so that some configurations vary by block, some
    by operation, and some by layer. Φ(z) is the layer's quantile in p(option) ∝ w(method) · exp(λ · its average bits),
    w ~ Dirichlet(½) over methods. The average bits increase with λ, which is chosen to meet the target.
    """
    if number % ANCHOR_EVERY == ANCHOR_EVERY - 1:
        return _anchor(space, seed, number // ANCHOR_EVERY, bits)
    rng = np.random.default_rng([seed, number])
    target = evenly(seed, number - number // ANCHOR_EVERY, bits)
    quantiles = ndtr(together(rng, groups))
    table = OptionTable.of(space)
    weights = _method_weights(rng, space, table)

    def chosen(slope: float) -> np.ndarray:
        """Rank by size of each layer's option."""
        cumulated = np.cumsum(table.tilted(weights, slope), axis=1)
        return np.asarray((cumulated < quantiles[:, None] * cumulated[:, -1:]).sum(axis=1))

    def average(choice: np.ndarray) -> float:
        return float(np.take_along_axis(table.bits, choice[:, None], axis=1)[:, 0] @ table.share)

    below, above = -STEEPEST, STEEPEST  # bisection: the average is a step function of the slope
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if average(chosen(middle)) < target else (below, middle)
    best = min(map(chosen, (below, above)), key=lambda choice: abs(average(choice) - target))
    return space.decode(np.take_along_axis(table.order, best[:, None], axis=1)[:, 0])


def anchors(space: SearchSpace, bits: tuple[float, float]) -> list[Configuration]:
    """Uniform configurations in the range of bits, else the nearest; layers without the option get their nearest."""
    every = [
        Configuration((name, nearest(space.options[name], option)) for name in space.layers) for option in space.union
    ]
    middle = sum(bits) / 2
    inside = [c for c in every if bits[0] <= space.average_bits(c) <= bits[1]]
    return inside or [min(every, key=lambda c: abs(space.average_bits(c) - middle))]


def nearest(options: Sequence[Option], wanted: Option) -> Option:
    """The option of the nearest width, preferably of the same method."""
    return min(options, key=lambda o: (abs(o.bits - wanted.bits), o.method != wanted.method, o))


def _anchor(space: SearchSpace, seed: int, turn: int, bits: tuple[float, float]) -> Configuration:
    found = anchors(space, bits)
    order = np.random.default_rng([seed, 0, 1]).permutation(len(found))
    return found[int(order[turn % len(found)])]


def evenly(seed: int, number: int, bits: tuple[float, float]) -> float:
    """Point ``number`` of a golden-ratio sequence over a range: the first n points cover it evenly for every n."""
    start = float(np.random.default_rng([seed, 0, 2]).uniform())
    return bits[0] + (bits[1] - bits[0]) * ((start + number * _GOLDEN) % 1.0)


def together(rng: np.random.Generator, groups: tuple[Sequence[str], Sequence[str]]) -> np.ndarray:
    """A standard normal number for each layer, correlated within ``groups``: its block and its operation."""
    layers = len(groups[0])
    by_block, by_operation, own = np.sqrt(rng.dirichlet(np.ones(3)))
    z = own * rng.standard_normal(layers)
    for scale, group in zip((by_block, by_operation), groups):
        names = sorted(set(group))
        drawn = dict(zip(names, rng.standard_normal(len(names))))
        z += scale * np.array([drawn[name] for name in group])
    return z


def _method_weights(rng: np.random.Generator, space: SearchSpace, table: OptionTable) -> np.ndarray:
    """Weight of each option: its method's weight, divided among the layer's options of that method."""
    methods = sorted({option.method for option in space.union})
    weight = dict(zip(methods, rng.dirichlet(np.full(len(methods), _CONCENTRATION)) + 1e-6))
    rows = []
    for options, order in zip(space.options.values(), table.order):
        of = [option.method for option in options]
        rows.append(np.array([weight[m] / of.count(m) for m in of])[order])
    return np.array(rows) * table.real
