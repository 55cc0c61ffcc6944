"""The published way of choosing: every layer takes its best option by itself, for one trade-off of quality and size."""

from __future__ import annotations

import math
from functools import partial

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.search.programs import Values

_STEPS = 60


def argmax_configuration(space: SearchSpace, scores: Values, nbytes: int) -> Configuration:
    """Each layer's option of highest score − λ · its average bits, with the least λ ≥ 0 whose sum fits ``nbytes``.

    The paper (section 3.3) trains one predictor for each trade-off and takes no size; λ stands for the
    trade-off, so that its answer can be compared at one. A layer counts by its bits a weight, not by its bytes, as in
    the paper's average. Raises if not even the largest λ fits.
    """
    low, high = 0.0, 1e-3
    if space.nbytes(_at(space, scores, 0.0)) <= nbytes:
        return _at(space, scores, 0.0)
    while space.nbytes(_at(space, scores, high)) > nbytes:
        low, high = high, 4 * high
        if high > 1e12:
            raise Qua2SeDiMoError(f"no configuration is as small as {nbytes} bytes", "Ask for a larger size.")
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if space.nbytes(_at(space, scores, middle)) > nbytes else (low, middle)
    return _at(space, scores, high)


def _at(space: SearchSpace, scores: Values, price: float) -> Configuration:
    def value(layer: str, option: Option) -> float:
        shape = space.shapes[layer]
        return scores[layer][option] - price * 8 * option.nbytes(shape) / math.prod(shape)

    return Configuration((n, max(space.options[n], key=partial(value, n))) for n in space.layers)
