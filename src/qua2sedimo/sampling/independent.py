"""Samplers that draw every layer independently, given one random number per configuration."""

from __future__ import annotations

import numpy as np

from qua2sedimo.options import Configuration, SearchSpace
from qua2sedimo.sampling.tilt import OptionTable, slope_for


def spread(space: SearchSpace, seed: int, number: int, bits: tuple[float, float]) -> Configuration:
    """Target average bits uniform over ``bits``, then p(option) ∝ exp(λ · its average bits).

    This is the maximum-entropy distribution with the target as its mean.
    """
    rng = np.random.default_rng([seed, number])
    target, table = rng.uniform(*bits), OptionTable.of(space)

    def mean(slope: float) -> float:
        return float((table.tilted(table.real, slope) * table.bits).sum(axis=1) @ table.share)

    distributions = table.tilted(table.real, slope_for(mean, target))
    return space.decode(rng.choice(len(p), p=p) for p in table.by_option(distributions))


def paper(space: SearchSpace, seed: int, number: int) -> Configuration:
    """One p ~ U(0, 1) per configuration; the method of a layer is uniform among those at its width.

    A layer with widths b_0 < … < b_n gets b_k with k ~ Binomial(n, 1 − p): with two widths, the lower one with
    probability p (section 4 of the paper); with more, mean widths spread over the range as evenly.
    """
    rng = np.random.default_rng([seed, number])
    p = rng.uniform()
    chosen = {}
    for layer in space.layers:
        widths = sorted({o.bits for o in space.options[layer]})
        width = widths[int(np.sum(rng.uniform(size=len(widths) - 1) >= p))]
        options = [o for o in space.options[layer] if o.bits == width]
        chosen[layer] = options[rng.integers(len(options))]
    return Configuration(chosen)
