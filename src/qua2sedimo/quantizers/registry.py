"""The methods by name. A new method is one file and one line here."""

from __future__ import annotations

import math

from qua2sedimo.quantizers.kmeans import KMeansPerChannel, KMeansPerTensor
from qua2sedimo.quantizers.method import Method
from qua2sedimo.quantizers.packing import packed_length
from qua2sedimo.quantizers.uniform import UniformAffine

METHODS: dict[str, Method] = {m.name: m for m in (UniformAffine(), KMeansPerChannel(), KMeansPerTensor())}


def packed_bytes(method: str, shape: tuple[int, ...], bits: int) -> int:
    """Bytes of codes and parameters of a weight of this shape, without quantizing it."""
    parameters = METHODS[method].parameter_shapes(shape, bits)
    return packed_length(math.prod(shape), bits) + 2 * sum(map(math.prod, parameters.values()))
