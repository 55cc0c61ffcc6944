"""Integer programs: the configurations of highest total score within a number of packed bytes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.search.constraints import Allowed, allow, kept_bytes
from qua2sedimo.search.knapsack import best_choices
from qua2sedimo.search.pareto import pareto_front

#: Score of every option of every layer; higher is better for quality.
Values = Mapping[str, Mapping[Option, float]]


def best_configurations(
    space: SearchSpace, scores: Values, nbytes: int, count: int = 1, allowed: Allowed | None = None
) -> Iterator[Configuration]:
    """The ``count`` best distinct configurations of at most ``nbytes``, best first, by integer program.

    Maximise Σ score(layer, option) with exactly one of the allowed options a layer and Σ bytes ≤ ``nbytes``. Layers
    kept in 16 bits are absent from the configurations, and count two bytes a weight. Ends early when no other
    configuration fits.
    """
    allowed = allowed or allow(space)
    sets = allowed.method_sets()
    streams = [_best(space, scores, nbytes, count, [allowed.of(n, s) for n in space.layers]) for s in sets]
    seen: set[Configuration] = set()
    for _, configuration in heapq.merge(*streams, key=lambda pair: -pair[0]):
        if configuration not in seen and len(seen) < count:
            seen.add(configuration)
            yield configuration
        if len(seen) >= count:
            return


def _best(
    space: SearchSpace, scores: Values, nbytes: int, count: int, options: Sequence[tuple[Option, ...]]
) -> Iterator[tuple[float, Configuration]]:
    free = [(layer, of) for layer, of in zip(space.layers, options) if of]
    kept = sum(kept_bytes(space.shapes[layer]) for layer, of in zip(space.layers, options) if not of)
    if not free:
        if kept <= nbytes:
            yield 0.0, Configuration({})
        return
    sizes = [np.array([o.nbytes(space.shapes[layer]) for o in of]) for layer, of in free]
    losses = [-np.array([scores[layer][o] for o in of]) for layer, of in free]
    for chosen in best_choices(sizes, losses, nbytes - kept, count):
        total = -sum(float(of[i]) for of, i in zip(losses, chosen))
        yield total, Configuration((layer, of[i]) for (layer, of), i in zip(free, chosen))


@dataclass(frozen=True)
class Setting:
    """One option for each layer of a block, the packed bytes they take, their score, and its standard error."""

    options: Mapping[str, Option]
    nbytes: int
    score: float
    spread: float = 0.0


def best_settings(blocks: Sequence[Sequence[Setting]], nbytes: int, count: int = 1) -> Iterator[Configuration]:
    """The ``count`` configurations of highest total score within ``nbytes``, one setting of every block.

    Only settings on the Pareto frontier of their block are combined. Blocks must not share layers.
    """
    worth = [non_dominated(block) for block in blocks]
    sizes = [np.array([s.nbytes for s in block]) for block in worth]
    losses = [-np.array([s.score for s in block]) for block in worth]
    for chosen in best_choices(sizes, losses, nbytes, count):
        yield Configuration({k: o for block, i in zip(worth, chosen) for k, o in block[i].options.items()})


def non_dominated(settings: Sequence[Setting]) -> list[Setting]:
    """The settings on the Pareto frontier of size and score, smallest first."""
    return [settings[i] for i in pareto_front([s.nbytes for s in settings], [s.score for s in settings])]
