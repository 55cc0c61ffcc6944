"""A single layer quantized, all others in full precision."""

from __future__ import annotations

import numpy as np

from qua2sedimo.options import Configuration, Option, SearchSpace

_MIDDLE = 4  # bits


def single_options(options: tuple[Option, ...], nbytes: dict[Option, int]) -> tuple[Option, ...]:
    """The smallest option of the lowest width, and that of the width nearest to 4 bits, if different."""

    def smallest(bits: int) -> Option:
        return min((o for o in options if o.bits == bits), key=lambda o: (nbytes[o], o))

    widths = sorted({o.bits for o in options})
    return tuple(dict.fromkeys(smallest(b) for b in (widths[0], min(widths, key=lambda b: (abs(b - _MIDDLE), b)))))


def singles(space: SearchSpace) -> list[tuple[str, Option]]:
    """Every (layer, option) that is measured alone, in the space's order."""
    return [
        (name, option)
        for name in space.layers
        for option in single_options(
            space.options[name], {o: o.nbytes(space.shapes[name]) for o in space.options[name]}
        )
    ]


def single_count(space: SearchSpace) -> int:
    return len(singles(space))


def single(space: SearchSpace, seed: int, number: int) -> Configuration:
    """Single ``number``, in an order shuffled by the seed, so that every prefix is a fair sample."""
    every = singles(space)
    return Configuration([every[int(np.random.default_rng([seed, 3]).permutation(len(every))[number])]])
