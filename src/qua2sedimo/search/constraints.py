"""What a choice may not do: layers left in 16 bits, least widths, methods."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qua2sedimo.denoisers import parse_unit
from qua2sedimo.denoisers.patterns import matching
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.quantizers import METHODS

Names = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class Constraints:
    """Limits on a choice. Patterns are those of the shell and match whole layer names.

    ``keep``: layers that stay in 16 bits, and count so; ``min_bits``: (pattern, least nominal width; of low rank, least
    bits a weight); ``methods``: only these, e.g. those a runtime has kernels for; ``methods_at_most``: the most
    different ones in the whole choice.
    """

    keep: tuple[str, ...] = ()
    min_bits: tuple[tuple[str, int], ...] = ()
    methods: tuple[str, ...] = ()
    methods_at_most: int | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise Qua2SeDiMoError(f"unknown method '{method}'", f"Known: {', '.join(METHODS)}.")
        if self.methods_at_most is not None and self.methods_at_most < 1:
            raise Qua2SeDiMoError(f"methods-at-most must be at least 1, got {self.methods_at_most}")

    @property
    def name(self) -> str:
        """Names the constraints in files; empty if there are none."""
        parts = [f"keep {p}" for p in self.keep] + [f"min-bits {p}={b}" for p, b in self.min_bits]
        parts += [f"methods {','.join(self.methods)}"] if self.methods else []
        parts += [f"methods-at-most {self.methods_at_most}"] if self.methods_at_most is not None else []
        return "; ".join(parts)

    @property
    def flags(self) -> list[str]:
        """The options of a command that ask for the same."""
        found = [f"--keep={pattern}" for pattern in self.keep]
        found += [f"--min-bits={pattern}={bits}" for pattern, bits in self.min_bits]
        found += [f"--methods={','.join(self.methods)}"] if self.methods else []
        return found + ([f"--methods-at-most={self.methods_at_most}"] if self.methods_at_most is not None else [])

    @property
    def suffix(self) -> str:
        """Tells files of these constraints from those without; empty if there are none."""
        return f"-{zlib.crc32(self.name.encode()):08x}" if self.name else ""

    @staticmethod
    def parse_min_bits(text: str) -> tuple[str, int]:
        """``"*.attn*=4"`` → (pattern, 4)."""
        pattern, _, bits = text.rpartition("=")
        if not pattern or not bits.isdecimal() or len(bits) > 2 or not 2 <= int(bits) <= 8:
            raise Qua2SeDiMoError(
                f"'{text[:80]}' is not of the form PATTERN=BITS with 2 to 8 bits", "Example: '*.attn1.*=4'."
            )
        return pattern, int(bits)


@dataclass(frozen=True)
class Allowed:
    """The options each layer may have; none: it stays in 16 bits. With the constraints this came from."""

    options: Mapping[str, tuple[Option, ...]]
    constraints: Constraints = field(default_factory=Constraints)
    without: tuple[tuple[str, Allowed], ...] = ()  # (a constraint, what is allowed if it alone is lifted)

    def method_sets(self) -> list[frozenset[str] | None]:
        """The sets of methods a choice may mix; None if any."""
        methods = sorted({o.method for options in self.options.values() for o in options})
        most = self.constraints.methods_at_most
        if most is None or most >= len(methods):
            return [None]
        sets = [frozenset(of) for of in itertools.combinations(methods, most)]
        return [s for s in sets if all(not o or any(x.method in s for x in o) for o in self.options.values())]

    def of(self, layer: str, methods: frozenset[str] | None) -> tuple[Option, ...]:
        """The options of a layer, of these methods only if they are given."""
        return tuple(o for o in self.options[layer] if methods is None or o.method in methods)

    def permits(self, configuration: Mapping[str, Option]) -> bool:
        """Whether a configuration has exactly the layers it may have, each under an allowed option."""
        most = self.constraints.methods_at_most
        return all(configuration[n] in of if n in configuration else not of for n, of in self.options.items()) and (
            most is None or len({o.method for o in configuration.values()}) <= most
        )

    def byte_range(self, space: SearchSpace) -> tuple[int, int]:
        """Least and most packed bytes of all layers; kept ones count two a weight. Raises if nothing is allowed."""
        sets = self.method_sets()
        if not sets:
            raise Qua2SeDiMoError(
                f"no choice has at most {self.constraints.methods_at_most} methods: some layers offer none in common",
                "Allow more methods.",
            )
        ranges = [_range(space, [self.of(layer, s) for layer in space.layers]) for s in sets]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def binding(self, space: SearchSpace) -> list[tuple[str, int]]:
        """(constraint, least bytes without it) of those whose lifting lets a choice be smaller."""
        low, _ = self.byte_range(space)
        lifted = [(name, other.byte_range(space)[0]) for name, other in self.without]
        return [(name, least) for name, least in lifted if least < low]


def allow(space: SearchSpace, constraints: Constraints | None = None, names: Names = lambda layer: (layer,)) -> Allowed:
    """What the constraints leave of a space; ``names`` gives all names that patterns may match for a layer.

    Raises if a pattern matches no layer, or a layer has no option left.
    """
    constraints = constraints or Constraints()
    return Allowed(
        _options(space, constraints, names),
        constraints,
        tuple((lifted.name, Allowed(_options(space, rest, names), rest)) for lifted, rest in _each_lifted(constraints)),
    )


def kept_bytes(shape: Sequence[int]) -> int:
    """Bytes of a weight that stays in 16 bits."""
    return 2 * math.prod(shape)


def _options(space: SearchSpace, constraints: Constraints, names: Names) -> dict[str, tuple[Option, ...]]:
    named = {n: (n, *names(n)) for n in space.layers}

    def found(pattern: str, what: str) -> list[str]:
        layers = matching(pattern, named)
        if not layers:
            raise Qua2SeDiMoError(f"{what}: no layer matches '{pattern}'", "See `qua2sedimo inspect MODEL`.")
        return layers

    whole = {parse_unit(n)[0] for p in constraints.keep for n in found(p, "keep")}
    kept = {n for n in space.layers if parse_unit(n)[0] in whole}  # the parts of a layer are kept together
    least = dict.fromkeys(space.layers, 0)
    for pattern, bits in constraints.min_bits:
        for layer in found(pattern, "min-bits"):
            least[layer] = max(least[layer], bits)
    options: dict[str, tuple[Option, ...]] = {}
    for layer in space.layers:
        offered = [o for o in space.options[layer] if not constraints.methods or o.method in constraints.methods]
        wide = tuple(o for o in offered if _width(o, space.shapes[layer]) >= least[layer])
        options[layer] = () if layer in kept else wide
        if layer not in kept and not options[layer]:
            offer = ", ".join(map(str, space.options[layer]))
            raise Qua2SeDiMoError(
                f"layer '{layer}': {constraints.name} leaves it no option of {offer}",
                "Loosen the constraint, or use wider options.",
            )
    return options


def _width(option: Option, shape: tuple[int, ...]) -> float:
    """Bits of a weight's code; where a weight has none of its own (low rank), packed bits by the number of weights."""
    weights = math.prod(shape)
    coded = METHODS[option.method].code_count(shape, option.number) == weights
    return option.bits if coded else 8 * option.nbytes(shape) / max(1, weights)


def _each_lifted(constraints: Constraints) -> list[tuple[Constraints, Constraints]]:
    """(one constraint alone, the others) for each."""
    c, nothing = constraints, Constraints()
    pairs = [(replace(nothing, keep=(p,)), replace(c, keep=tuple(q for q in c.keep if q != p))) for p in c.keep]
    pairs += [
        (replace(nothing, min_bits=(p,)), replace(c, min_bits=tuple(q for q in c.min_bits if q != p)))
        for p in c.min_bits
    ]
    if c.methods:
        pairs.append((replace(nothing, methods=c.methods), replace(c, methods=())))
    if c.methods_at_most is not None:
        pairs.append((replace(nothing, methods_at_most=c.methods_at_most), replace(c, methods_at_most=None)))
    return pairs


def _range(space: SearchSpace, options: Sequence[tuple[Option, ...]]) -> tuple[int, int]:
    sizes = [
        [o.nbytes(space.shapes[layer]) for o in of] or [kept_bytes(space.shapes[layer])]
        for layer, of in zip(space.layers, options)
    ]
    return sum(map(min, sizes)), sum(map(max, sizes))
