"""Which quantization methods tests of any small weight can take."""

from __future__ import annotations

from qua2sedimo.quantizers import METHODS

#: Names of the methods that store weights of every shape, at every width from 1 to 8 bits or every such rank.
ANY_SHAPE = tuple(
    name
    for name, method in METHODS.items()
    if set(range(1, 9)) <= set(method.numbers) and method.fits((1, 1), method.numbers[0])
)
