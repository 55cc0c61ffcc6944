"""Which random configurations to measure: sequences that are functions of the seed."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, SearchSpace

SAMPLERS = ("spread", "paper")


def sample(space: SearchSpace, sampler: str, seed: int, number: int, bits: tuple[float, float]) -> Configuration:
    """Configuration ``number`` of the sequence of ``seed``.

    ``spread``: target average bits uniform over the range ``bits`` (cut to what the space can reach), then the
    maximum-entropy distribution over options with that mean: p(option) ∝ exp(λ · its average bits). ``paper``: a
    probability p ~ U(0, 1), every layer at its lowest width with probability p and at its highest otherwise, the
    method uniform (section 4 of the paper, for two widths).
    """
    rng = np.random.default_rng([seed, number])
    if sampler == "paper":
        return _paper(space, rng)
    if sampler != "spread":
        raise Qua2SeDiMoError(f"unknown sampler '{sampler}'; known: {', '.join(SAMPLERS)}")
    low, high = (8 * n / space.weights for n in space.byte_range())
    target = rng.uniform(min(max(bits[0], low), high), min(max(bits[1], low), high))
    return _spread(space, target, rng)


def _paper(space: SearchSpace, rng: np.random.Generator) -> Configuration:
    p = rng.uniform()
    chosen = {}
    for layer in space.layers:
        widths = sorted({o.bits for o in space.options[layer]})
        width = widths[0] if rng.uniform() < p else widths[-1]
        options = [o for o in space.options[layer] if o.bits == width]
        chosen[layer] = options[rng.integers(len(options))]
    return Configuration(chosen)


def _spread(space: SearchSpace, target: float, rng: np.random.Generator) -> Configuration:
    sizes = [np.array([8.0 * o.nbytes(space.shapes[layer]) for o in space.options[layer]]) for layer in space.layers]
    counts = [size / w for size, w in zip(sizes, _weights(space))]  # average bits of each option

    def distribution(slope: float) -> list[np.ndarray]:
        logits = [slope * bits for bits in counts]
        weights = [np.exp(x - x.max()) for x in logits]
        return [w / w.sum() for w in weights]

    def surplus(slope: float) -> float:
        return sum(float(p @ s) for p, s in zip(distribution(slope), sizes)) / space.weights - target

    limit = 40.0
    if surplus(-limit) >= 0:
        slope = -limit
    elif surplus(limit) <= 0:
        slope = limit
    else:
        slope = float(brentq(surplus, -limit, limit, xtol=1e-6))
    return space.decode(rng.choice(len(p), p=p) for p in distribution(slope))


def _weights(space: SearchSpace) -> list[int]:
    return [int(np.prod(space.shapes[layer])) for layer in space.layers]
