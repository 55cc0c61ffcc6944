"""The near sampler: configurations that could be chosen, were the expected damage of layers somewhat different."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.sampling.stratified import evenly, together

#: Standard deviations of the factors' logarithms, in turn: from next to the frontier to well beside it.
SPREADS = (0.3, 0.7, 1.2)
_HALVINGS = 60


def near(
    space: SearchSpace, seed: int, number: int, bits: tuple[float, float],
    damage: Mapping[str, Mapping[Option, float]], groups: tuple[Sequence[str], Sequence[str]],
) -> Configuration:  # fmt: skip
    """Configuration ``number``: the least damage at an average of at most its target bits, evenly spaced in ``bits``.

    ``damage`` is what every option of every layer is expected to do; each layer's is multiplied by e^(σ·z) with z
    standard normal, correlated within blocks and operations as in ``stratified``, and σ in turn one of
    :data:`SPREADS`. The layers' options minimise Σ damage + λ·bytes, with the least λ that meets the target. An option
    between two better ones is thus never taken: next to the frontier are the corners of its convex hull.
    """
    rng = np.random.default_rng([seed, number])
    target = evenly(seed, number, bits) * space.weights / 8
    factors = np.exp(SPREADS[number % len(SPREADS)] * together(rng, groups))
    sizes = [np.array(nbytes, dtype=float) for nbytes in space.option_bytes]
    losses = [f * np.array([damage[n][o] for o in space.options[n]]) for f, n in zip(factors, space.layers)]

    def chosen(multiplier: float) -> list[int]:
        return [int(np.lexsort((of, loss + multiplier * of))[0]) for loss, of in zip(losses, sizes)]

    def nbytes(choice: Sequence[int]) -> float:
        return float(sum(of[i] for of, i in zip(sizes, choice)))

    largest = max(float(np.max(of)) for of in losses)
    below, above = np.log(max(largest, 1e-300)) - 60.0, np.log(max(largest, 1e-300)) + 5.0  # of the multiplier
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        below, above = (middle, above) if nbytes(chosen(np.exp(middle))) > target else (below, middle)
    return space.decode(np.array(chosen(np.exp(above))))
