"""Options, the search space they span, its configurations, and their exact sizes.

All sizes are bytes of packed tensors, including codebooks, scales and zero points, as in a packed checkpoint; *average
bits* are 8 × bytes / number of quantized weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import GGUF_METHODS, METHODS, CodeMethod, packed_bytes

#: The paper's three methods, and its options (section 3.1): each at 4 and 3 bits.
PAPER_METHODS = ("uaq", "kmeans_c", "kmeans_a")
PAPER_BITS = (4, 3)
#: Bit widths of the wide set. 7 bits add little to 6 and 8, and more options need more measurements; at 8 bits uniform
#: levels are as good as codebooks.
WIDE_BITS = {"uaq": (2, 3, 4, 5, 6, 8)}
_WIDE_CODEBOOKS = (2, 3, 4, 5, 6)
#: The default set. Of these widths a layer has those that some budget may need: about 21 bits a weight on disk. From 3
#: bits on, levels are fixed ones times a scale a row, or a codebook of the layer, whichever errs less.
ROW_BITS = (1, 2, 3, 4, 5, 6, 8)
CODEBOOK_BITS = ROW_BITS[2:]
RANKS = (4, 8, 12, 16, 24, 32, 48, 64)
#: A low-rank option as large as this many bits a weight is worse than a code for each weight.
_MOST_RANK_BITS = 4.0
_MOST_DIGITS = 4  # of the number of an option
_SHOWN = 5  # layers in a message
#: The smallest layers, with this share of all weights together, have an 8-bit option where no layer's stake is known.
_SMALL_SHARE = 0.05
#: Average bits between which every budget is served, and the bits by which an estimate of a layer's needs may be wrong.
_SERVED, _MARGIN = (2.0, 6.0), 1.0
OPTION_SETS = ("default", "wide", "paper", "gguf")


@dataclass(frozen=True, order=True)
class Option:
    """One way to store one weight layer: a method of the quantizer registry and its number.

    The number is the bit width of a code (1 to 8) or, for ``lowrank``, the rank; ``half-16`` is the 16-bit weight.
    """

    method: str
    number: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise Qua2SeDiMoError(f"unknown quantization method '{self.method}'; known: {', '.join(METHODS)}")
        method = METHODS[self.method]
        if self.number not in method.numbers:
            known = method.numbers
            span = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
            raise Qua2SeDiMoError(f"option '{self}': {method.quantity} must be {span}, got {self.number}")

    def __str__(self) -> str:
        return f"{self.method}-{self.number}"

    @property
    def bits(self) -> int:
        """Bits of one stored number: the nominal width, without overhead; 8 for ``lowrank``, whose factors have 8."""
        return METHODS[self.method].width(self.number)

    @classmethod
    def parse(cls, text: str) -> Option:
        """``"kmeans_c-4"`` → ``Option("kmeans_c", 4)``. Raises :class:`Qua2SeDiMoError` on any other form."""
        method, _, number = text.rpartition("-")
        if not number.isdecimal() or len(number) > _MOST_DIGITS:
            raise Qua2SeDiMoError(f"option '{text[:80]}' is not of the form METHOD-BITS, e.g. 'uaq-4'")
        return cls(method, int(number))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Packed bytes of a weight of this shape (first dimension: output channels), overhead included."""
        return packed_bytes(self.method, shape, self.number)


def bit_operations(macs: Mapping[str, int], configuration: Mapping[str, Option], activation_bits: int = 16) -> int:
    """BOPs of a forward: Σ MACs × weight bits × activation bits over the layers of ``macs``; layers that the
    configuration does not name have 16-bit weights."""
    bits = {layer: configuration[layer].bits if layer in configuration else 16 for layer in macs}
    return activation_bits * sum(count * bits[layer] for layer, count in macs.items())


def options_for(option_set: str, shape: tuple[int, ...]) -> tuple[Option, ...]:
    """The options of a layer: a set of :data:`OPTION_SETS`, or a comma-separated list like ``"uaq-4,kmeans_a-3"``.

    ``default``: ``row`` at 1 to 6 and at 8 bits, ``kmeans_a`` from 3 bits on, and ``lowrank`` up to 4 bits a weight; of
    these a bank with statistics holds what is worth choosing. ``paper``: its six. ``wide``: those and the paper's
    methods at other widths with an overhead of at most one bit per weight; beyond that UAQ with one more bit is smaller
    and better. ``gguf``: the types of GGUF files, and ``half-16``. Options that cannot store such a shape are left out.
    """
    weights = math.prod(shape)
    if option_set == "default":
        ranks = [Option("lowrank", r) for r in RANKS if r < min(shape[0], weights // max(1, shape[0]))]
        thin = [o for o in ranks if 8 * o.nbytes(shape) <= _MOST_RANK_BITS * weights]
        books = [Option("kmeans_a", b) for b in CODEBOOK_BITS]
        return tuple(sorted([*(Option("row", b) for b in ROW_BITS), *books, *thin]))
    paper = [Option(method, bits) for method in PAPER_METHODS for bits in PAPER_BITS]
    if option_set == "paper":
        return tuple(sorted(paper))
    if option_set == "wide":
        every = [Option(method, bits) for method in PAPER_METHODS for bits in WIDE_BITS.get(method, _WIDE_CODEBOOKS)]
        paying = [o for o in every if 8 * o.nbytes(shape) <= (o.bits + 1) * weights]
        return tuple(sorted({*paper, *paying}))
    if option_set == "gguf":
        named = {Option(m.name, n) for m in (*GGUF_METHODS, METHODS["half"]) for n in m.numbers}
    else:
        named = {Option.parse(text.strip()) for text in option_set.split(",")}
    return tuple(sorted(o for o in named if METHODS[o.method].fits(shape, o.number)))


def within_reach(space: SearchSpace, stakes: Mapping[str, float]) -> SearchSpace:
    """The space without widths of codes that no budget of 2 to 6 average bits is likely to need.

    ``stakes``: for each layer, what its outputs add to the squared guided output, Σ_c G_c·w_c·H·w_cᵀ. With damage
    stake · 4^(−bits), a budget is best spent at ½·log₂(stake / weights) + t bits a weight, with the same t for all
    layers (reverse water-filling: Cover and Thomas, *Elements of Information Theory*, section 10.3.3). A layer keeps
    the widths between those at both ends of the range, and one bit around; a layer without a stake all up to 6.
    Without any stakes, 8 bits are left to the smallest layers.
    """
    weights = dict(zip(space.layers, space.layer_weights))
    known = [name for name in space.layers if stakes.get(name, 0.0) > 0 and weights[name]]
    if not known:
        small = small_layers(space.shapes)
        return _restricted(space, {name: (1.0, 8.0 if name in small else 6.0) for name in space.layers})
    needs = np.array([math.log2(stakes[name] / weights[name]) / 2 for name in known])
    share = np.array([weights[name] for name in known]) / sum(weights[name] for name in known)
    low, high = (needs + _level(needs, share, bits) for bits in _SERVED)
    spans = {name: (a - _MARGIN, b + _MARGIN) for name, a, b in zip(known, low, high)}
    return _restricted(space, {name: spans.get(name, (1.0, 6.0)) for name in space.layers})


def _level(needs: np.ndarray, share: np.ndarray, bits: float) -> float:
    """t with Σ share · clip(needs + t, least width, most) = bits, by bisection."""
    least, most = ROW_BITS[0], ROW_BITS[-1]
    below, above = least - float(needs.max()), most - float(needs.min())
    for _ in range(60):
        middle = (below + above) / 2
        spent = float(share @ np.clip(needs + middle, least, most))
        below, above = (middle, above) if spent < bits else (below, middle)
    return (below + above) / 2


def _restricted(space: SearchSpace, spans: Mapping[str, tuple[float, float]]) -> SearchSpace:
    """The space with the codes of widths within each layer's span, at least of the nearest; other options stay."""

    def kept(name: str) -> list[Option]:
        low, high = spans[name]
        coded = [o for o in space.options[name] if isinstance(METHODS[o.method], CodeMethod)]
        widths = {o.number for o in coded}
        near = {b for b in widths if low <= b <= high}
        near = near or set(sorted(widths, key=lambda b: max(low - b, b - high))[:1])
        return [o for o in space.options[name] if o not in coded or o.number in near]

    return space.restricted({name: kept(name) for name in space.layers})


def shapes_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The first few layers with their shapes, for a message."""
    shown = [f"'{name}' {list(shape)}" for name, shape in list(shapes.items())[:_SHOWN]]
    return ", ".join([*shown, *([f"and {len(shapes) - _SHOWN} more"] if len(shapes) > _SHOWN else [])])


def small_layers(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The smallest layers, which together have at most a twentieth of all weights."""
    weights = {name: math.prod(shape) for name, shape in shapes.items()}
    found, total = set(), 0
    for name in sorted(weights, key=lambda n: (weights[n], n)):
        total += weights[name]
        if total > _SMALL_SHARE * sum(weights.values()):
            break
        found.add(name)
    return found


class Configuration(Mapping[str, Option]):
    """One option per layer: an immutable, hashable mapping from layer name to :class:`Option`."""

    def __init__(self, choices: Mapping[str, Option] | Iterable[tuple[str, Option]]) -> None:
        self._choices = dict(choices)

    def __getitem__(self, layer: str) -> Option:
        return self._choices[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __hash__(self) -> int:
        return hash(frozenset(self._choices.items()))

    def __repr__(self) -> str:
        return f"Configuration({len(self)} layers, {self.digest})"

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits that identify this configuration in files and records."""
        return hashlib.sha256("".join(sorted(f"{k}={v};" for k, v in self.items())).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """``{"LAYER":"uaq-4",…}``, layers in order."""
        return json.dumps({layer: str(option) for layer, option in self.items()}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """Inverse of :meth:`to_json`; raises :class:`Qua2SeDiMoError` for an invalid option."""
        return cls({layer: Option.parse(option) for layer, option in json.loads(text).items()})

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In a file: an object of layer → option as text."""
        texts = core_schema.dict_schema(core_schema.str_schema(), core_schema.str_schema())
        parsed = core_schema.no_info_after_validator_function(
            lambda content: cls({layer: Option.parse(option) for layer, option in content.items()}), texts
        )
        written = core_schema.plain_serializer_function_ser_schema(
            lambda own: {layer: str(option) for layer, option in own.items()}
        )
        return core_schema.json_or_python_schema(parsed, core_schema.is_instance_schema(cls), serialization=written)


@dataclass(frozen=True)
class SearchSpace:
    """The layers of a denoiser (name → weight shape) and the options of each, which span all configurations."""

    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, tuple[Option, ...]]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], option_set: str) -> SearchSpace:
        """The space of these layers (name → weight shape) with the options of :func:`options_for`.

        Layers that none of them can store are left out. Raises :class:`Qua2SeDiMoError` naming the layers if none is
        left.
        """
        found = {name: options_for(option_set, shape) for name, shape in shapes.items()}
        kept = {name: options for name, options in found.items() if options}
        if shapes and not kept:
            raise Qua2SeDiMoError(
                f"none of the options '{option_set}' can store any layer: {shapes_text(shapes)}",
                "Choose other options with --options.",
            )
        return cls({name: tuple(shapes[name]) for name in kept}, kept)

    def restricted(self, options: Mapping[str, Sequence[Option]]) -> SearchSpace:
        """The same layers with only these of their options."""
        return SearchSpace(self.shapes, {n: tuple(o for o in self.options[n] if o in options[n]) for n in self.layers})

    @cached_property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @cached_property
    def weights(self) -> int:
        """Number of weights of all layers together."""
        return sum(self.layer_weights)

    @cached_property
    def layer_weights(self) -> tuple[int, ...]:
        """Number of weights of each layer."""
        return tuple(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def option_bytes(self) -> list[np.ndarray]:
        """Packed bytes of each option of each layer: layers × int64 [options]."""
        return [np.array([o.nbytes(self.shapes[name]) for o in self.options[name]]) for name in self.layers]

    @cached_property
    def hash(self) -> str:
        """A hash of layers and options: records, scores and banks of another space are refused."""
        content = [(name, list(self.shapes[name]), [str(o) for o in self.options[name]]) for name in self.layers]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @cached_property
    def union(self) -> tuple[Option, ...]:
        """Every option that any layer has, sorted."""
        return tuple(sorted({option for options in self.options.values() for option in options}))

    def nbytes(self, configuration: Mapping[str, Option]) -> int:
        """Packed bytes of all layers under the configuration; layers it does not name count 16 bits per weight.

        Raises :class:`Qua2SeDiMoError` if it names a layer that is not in the space.
        """
        unknown = configuration.keys() - self.shapes.keys()
        if unknown:
            raise Qua2SeDiMoError(f"configuration names layer '{min(unknown)}', which is not in this search space")
        return sum(
            configuration[name].nbytes(shape) if name in configuration else 2 * math.prod(shape)
            for name, shape in self.shapes.items()
        )

    def average_bits(self, configuration: Mapping[str, Option]) -> float:
        """Packed bits per weight, with overhead, over all layers of the space."""
        return 8 * self.nbytes(configuration) / self.weights

    def uniform(self, option: Option) -> Configuration:
        """The configuration that gives every layer this option, whether or not the space includes it."""
        return Configuration(dict.fromkeys(self.layers, option))

    def byte_range(self) -> tuple[int, int]:
        """Least and most packed bytes of any configuration of the space."""
        return sum(int(b.min()) for b in self.option_bytes), sum(int(b.max()) for b in self.option_bytes)

    def encode(self, configuration: Mapping[str, Option]) -> np.ndarray:
        """Option index of each layer, in :attr:`layers` order: int64 array [layers].

        Raises :class:`Qua2SeDiMoError` unless the configuration gives every layer one of its options.
        """
        if len(configuration) < len(self.layers):
            raise Qua2SeDiMoError(
                "configuration does not belong to this search space: it leaves "
                f"{len(self.layers) - len(configuration)} of {len(self.layers)} layers in full precision",
                "Predictors need configurations of all layers: sample with 'stratified', 'spread' or 'paper'.",
            )
        try:
            return np.array([self.options[name].index(configuration[name]) for name in self.layers])
        except (KeyError, ValueError) as error:
            raise Qua2SeDiMoError(f"configuration does not belong to this search space: {error}") from None

    def encode_partial(self, configurations: Sequence[Mapping[str, Option]]) -> np.ndarray:
        """Option indices int64 [configurations, layers], −1 where a configuration leaves a layer in 16 bits."""
        places = [{option: i for i, option in enumerate(self.options[layer])} for layer in self.layers]
        rows = [[of[c[n]] if n in c else -1 for n, of in zip(self.layers, places)] for c in configurations]
        return np.array(rows, dtype=int).reshape(-1, len(self.layers))

    def decode(self, choice: Iterable[int]) -> Configuration:
        """Inverse of :meth:`encode`."""
        return Configuration((name, self.options[name][int(i)]) for name, i in zip(self.layers, choice))
