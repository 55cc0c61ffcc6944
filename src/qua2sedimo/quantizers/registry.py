"""The methods by name. A new method is one file and one line here."""

from __future__ import annotations

from qua2sedimo.quantizers.gguf import GGUF_METHODS
from qua2sedimo.quantizers.half import HalfWeight
from qua2sedimo.quantizers.kmeans import KMeansPerChannel, KMeansPerTensor
from qua2sedimo.quantizers.lowrank import LowRank
from qua2sedimo.quantizers.method import LevelMethod, Method
from qua2sedimo.quantizers.row import RowScale
from qua2sedimo.quantizers.uniform import UniformAffine

_ALL: tuple[Method, ...] = (
    UniformAffine(), KMeansPerChannel(), KMeansPerTensor(), RowScale(), LowRank(), HalfWeight(), *GGUF_METHODS,
)  # fmt: skip
METHODS: dict[str, Method] = {m.name: m for m in _ALL}
#: Those whose codes name a level of their channel or of the tensor.
LEVEL_METHODS: dict[str, LevelMethod] = {m.name: m for m in _ALL if isinstance(m, LevelMethod)}


def packed_bytes(method: str, shape: tuple[int, ...], number: int) -> int:
    """Bytes of codes and parameters of a weight of this shape, without quantizing it."""
    return METHODS[method].packed_bytes(shape, number)
