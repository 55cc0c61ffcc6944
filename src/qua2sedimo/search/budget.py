"""A size asked for: average bits, bytes, or a share of the 16-bit size; and whether it can be reached."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import SearchSpace
from qua2sedimo.search.constraints import Allowed, allow

_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Budget:
    """At most this much, every overhead counted: average ``bits`` a weight, packed ``bytes``, or a ``ratio`` of the
    16-bit size."""

    amount: float
    unit: Literal["bits", "bytes", "ratio"] = "bits"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amount)):
            raise Qua2SeDiMoError(
                f"a budget of {self.amount} {self.unit} is no number", "Give a finite one, e.g. 3.5 bits."
            )

    def __str__(self) -> str:
        if self.unit == "bytes":
            return f"{self.amount:.0f} bytes"
        return f"{self.amount:g} bits" if self.unit == "bits" else f"{self.amount:g} of 16 bits"

    @property
    def name(self) -> str:
        """What files of this budget are called."""
        return repr(self.amount) if self.unit == "bits" else f"{self.amount:.12g}-{self.unit}"

    @classmethod
    def bytes(cls, text: str) -> Budget:
        """``"2.4MB"`` → a budget of 2,400,000 bytes; units are B, kB, MB, GB, KiB, MiB and GiB.

        Raises :class:`Qua2SeDiMoError` on what is no size.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kKMG]?i?B?)\s*", text)
        if not match or match[2] not in _UNITS or not math.isfinite(float(match[1]) * _UNITS[match[2]]):
            raise Qua2SeDiMoError(
                f"'{text[:80]}' is no size", f"A number and one of {', '.join(u for u in _UNITS if u)}: 2.4MB."
            )
        return cls(math.floor(float(match[1]) * _UNITS[match[2]] + 1e-6), "bytes")

    def nbytes(self, weights: int) -> int:
        """The most whole bytes within the budget, for this number of weights."""
        share = {"bits": weights / 8, "bytes": 1.0, "ratio": 2.0 * weights}[self.unit]
        return int(self.amount * share + 1e-6)


def budget_bytes(space: SearchSpace, budget: Budget, allowed: Allowed | None = None) -> int:
    """The budget in packed bytes; raises with the reachable range, and what binds, if nothing allowed is that small."""
    allowed = allowed or allow(space)
    nbytes = budget.nbytes(space.weights)
    low, high = allowed.byte_range(space)
    if nbytes >= low:
        return nbytes
    least, most = math.ceil(8000 * low / space.weights) / 1000, 8 * high / space.weights
    asked = f"{budget.amount:g} average bits" if budget.unit == "bits" else str(budget)
    reach = f"{least:.3f} to {most:.3f} bits ({low / 1e6:.3f} to {high / 1e6:.3f} MB) can be reached"
    binding = [
        f"{name} (without it from {8 * least / space.weights:.3f} bits)" for name, least in allowed.binding(space)
    ]
    remedy = f"; what binds is {', '.join(binding)}." if binding else "; wider options reach further."
    raise Qua2SeDiMoError(
        f"no configuration of these options is as small as {asked}", f"Including all overhead, {reach}{remedy}"
    )
