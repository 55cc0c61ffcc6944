"""A size asked for: average bits, bytes, or a share of the fp16 size; and what can be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import SearchSpace


@dataclass(frozen=True)
class Budget:
    """At most this many average bits per quantized weight, overhead counted."""

    bits: float

    def __str__(self) -> str:
        return f"{self.bits:g}"


def budget_bytes(space: SearchSpace, budget: Budget) -> int:
    """The budget in packed bytes; raises with the reachable range if no configuration is that small."""
    allowed = int(budget.bits * space.weights / 8 + 1e-6)
    low, high = space.byte_range()
    if allowed < low:
        least, most = math.ceil(8000 * low / space.weights) / 1000, 8 * high / space.weights
        raise Qua2SeDiMoError(
            f"no configuration of these options is as small as {budget.bits:g} average bits",
            f"With every overhead counted, {least:.3f} to {most:.3f} bits "
            f"({low / 1e6:.3f} to {high / 1e6:.3f} MB) can be reached; wider options reach further.",
        )
    return allowed
