"""What is maximised: an expression over metrics and size, such as ``psnr - 2*bits``.

    sum     = product { ("+" | "-" | "−") product }
    product = factor { ("*" | "×" | "/" | "÷") factor }
    factor  = ("-" | "−" | "+") factor | number | name | "(" sum ")"

Names are metrics, ``bits`` (average bits a weight), ``bytes`` (packed, of the quantized layers) and ``bops`` (bit
operations of one forward of the denoiser). Nothing is ever evaluated but these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.catalogue import METRICS, Metric
from qua2sedimo.options import Configuration, bit_operations
from qua2sedimo.records import Record

SIZES = ("bits", "bytes", "bops")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\S))")
_SAME = {"−": "-", "×": "*", "÷": "/"}

Value = float | np.ndarray


@dataclass(frozen=True)
class Number:
    value: float

    def __call__(self, names: Mapping[str, Value]) -> Value:
        return self.value


@dataclass(frozen=True)
class Name:
    name: str

    def __call__(self, names: Mapping[str, Value]) -> Value:
        return names[self.name]


@dataclass(frozen=True)
class Negative:
    of: Expression

    def __call__(self, names: Mapping[str, Value]) -> Value:
        return -self.of(names)


@dataclass(frozen=True)
class Binary:
    """``sign`` is one of + - * /."""

    sign: str
    left: Expression
    right: Expression

    def __call__(self, names: Mapping[str, Value]) -> Value:
        left, right = self.left(names), self.right(names)
        if self.sign == "+":
            return left + right
        if self.sign == "-":
            return left - right
        return left * right if self.sign == "*" else left / right


Expression = Number | Name | Negative | Binary


@dataclass(frozen=True)
class Objective:
    """An expression, and how its values are read.

    ``weights``: number of quantized weights, which gives ``bytes``; ``macs``: multiply-accumulates of each layer, which
    give ``bops``.

    A metric's name alone is the metric in its own better direction; anything else is maximised as it is written.
    """

    text: str
    expression: Expression
    weights: int = 0
    macs: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, weights: int = 0, macs: Mapping[str, int] | None = None) -> Objective:
        """Raises :class:`Qua2SeDiMoError` that points at the character, or if no metric is named."""
        found = cls(text.strip(), _Parser(text).whole(), weights, macs or {})
        if not found.metrics:
            raise Qua2SeDiMoError(
                f"objective '{text}' names no metric", f"Without one nothing is measured; known: {', '.join(METRICS)}."
            )
        return found

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Distinct names in the order they are written."""
        return tuple(dict.fromkeys(_names(self.expression)))

    @property
    def metrics(self) -> list[str]:
        """The metrics that must be measured."""
        return [name for name in self.names if name not in SIZES]

    @property
    def _bare(self) -> Metric | None:
        return METRICS[self.expression.name] if isinstance(self.expression, Name) else None

    @property
    def higher_is_better(self) -> bool:
        return self._bare is None or self._bare.higher_is_better

    @property
    def sign(self) -> int:
        """1 if a larger value is better, else −1."""
        return 1 if self.higher_is_better else -1

    @property
    def in_decibels(self) -> bool:
        """Whether models of the images' error can be fitted to it: every name is a metric in decibels, and a decibel of
        all of them is one of the whole, as in ``0.5*psnr + 0.5*features_db``: the geometric mean of their errors."""
        if any(name in SIZES or METRICS[name].unit != "dB" for name in self.names):
            return False
        at = [self.of(dict.fromkeys(self.metrics, level), 0.0) for level in (20.0, 30.0, 40.0)]
        return bool(np.allclose(np.diff(at), 10.0))

    def of_images(self, values: Mapping[str, Sequence[float]]) -> np.ndarray:
        """The value of each image alone [images], for an objective of paired metrics without sizes."""
        arrays = {name: np.asarray(values[name], dtype=np.float64) for name in self.metrics}
        return np.asarray(self._evaluated(arrays, float("nan"), None), dtype=np.float64)

    @property
    def title(self) -> str:
        return self.text if self._bare is None else self._bare.title

    @property
    def unit(self) -> str:
        """That of its metric; of an expression, that of the metrics in it if they have one and no other."""
        units = {METRICS[name].unit for name in self.metrics}
        return units.pop() if len(units) == 1 else ""

    def of(self, metrics: Mapping[str, float], bits: float, configuration: Configuration | None = None) -> float:
        """The value for measured metrics at ``bits`` average bits; ``bops`` need the configuration."""
        return float(self._evaluated({name: metrics[name] for name in self.metrics}, bits, configuration))

    def value(self, record: Record) -> float:
        return self.of(record.measurement.means, record.average_bits, record.configuration)

    def gain(self, record: Record) -> float:
        """The value with the sign that makes larger better."""
        return self.sign * self.value(record)

    def per_image(self, record: Record) -> np.ndarray | None:
        """The value of each image alone: [images]; None if a metric has only a value for the set."""
        values = record.measurement.values
        if any(name not in values for name in self.metrics):
            return None
        arrays = {name: np.asarray(values[name], dtype=np.float64) for name in self.metrics}
        return np.asarray(self._evaluated(arrays, record.average_bits, record.configuration), dtype=np.float64)

    def _evaluated(self, metrics: Mapping[str, Value], bits: float, configuration: Configuration | None) -> Value:
        if "bytes" in self.names and not self.weights:
            raise Qua2SeDiMoError(f"objective '{self.text}': bytes need the number of quantized weights")
        names = {**metrics, "bits": bits, "bytes": bits * self.weights / 8}
        if "bops" in self.names:
            names["bops"] = self._bops(configuration)
        try:
            with np.errstate(all="ignore"):
                value = self.expression(names)
        except ZeroDivisionError:
            value = np.nan
        if not np.all(np.isfinite(value)):
            shown = ", ".join(f"{name} = {names[name]}" for name in self.names)
            raise Qua2SeDiMoError(f"objective '{self.text}' has no finite value where {shown}", "Do not divide by it.")
        return value

    def _bops(self, configuration: Configuration | None) -> float:
        uncounted = [layer for layer, count in self.macs.items() if not count]
        if configuration is None or not self.macs or uncounted:
            which = uncounted[0] if uncounted else "its layers"
            raise Qua2SeDiMoError(
                f"objective '{self.text}': the operations of {which} were not counted",
                "The study's graph.json is older than `bops`: delete it, and it will be traced again.",
            )
        return float(bit_operations(self.macs, configuration))


class _Parser:
    """Recursive descent, one method a rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [
            (m.lastindex or 0, m[m.lastindex or 0], m.start(m.lastindex or 0)) for m in _TOKEN.finditer(text)
        ]
        self.place = 0

    def whole(self) -> Expression:
        found = self.sum()
        if self.place < len(self.tokens):
            self.refuse(f"expected an operator, found '{self.tokens[self.place][1]}'")
        return found

    def sum(self) -> Expression:
        left = self.product()
        while (sign := self.sign()) in ("+", "-"):
            self.place += 1
            left = Binary(sign, left, self.product())
        return left

    def product(self) -> Expression:
        left = self.factor()
        while (sign := self.sign()) in ("*", "/"):
            self.place += 1
            left = Binary(sign, left, self.factor())
        return left

    def factor(self) -> Expression:
        if self.place == len(self.tokens):
            self.refuse("expected a number, a name or '(', found the end")
        kind, token, _ = self.tokens[self.place]
        sign = self.sign()
        if kind == 2:
            self.check(token)
        elif kind == 3 and sign not in ("+", "-", "("):
            self.refuse(f"expected a number, a name or '(', found '{token}'")
        self.place += 1
        if kind == 1:
            return Number(float(token))
        if kind == 2:
            return Name(token)
        if sign == "(":
            inner = self.sum()
            if self.sign() != ")":
                self.refuse("expected ')'")
            self.place += 1
            return inner
        return Negative(self.factor()) if sign == "-" else self.factor()

    def sign(self) -> str:
        """The operator or bracket at this place, in its plain form; empty for anything else."""
        if self.place == len(self.tokens) or self.tokens[self.place][0] != 3:
            return ""
        token = self.tokens[self.place][1]
        return _SAME.get(token, token)

    def check(self, name: str) -> None:
        known = [*METRICS, *SIZES]
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            self.refuse(f"unknown name '{name}'.{meant}", f"Known: {', '.join(known)}.")

    def refuse(self, what: str, remedy: str = "Numbers, names, + - * / and brackets make an objective.") -> NoReturn:
        at = self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.text)
        raise Qua2SeDiMoError(f"objective: {what}\n  {self.text}\n  {' ' * at}^", remedy)


def _names(expression: Expression) -> Iterator[str]:
    if isinstance(expression, Name):
        yield expression.name
    elif isinstance(expression, Negative):
        yield from _names(expression.of)
    elif isinstance(expression, Binary):
        yield from _names(expression.left)
        yield from _names(expression.right)
