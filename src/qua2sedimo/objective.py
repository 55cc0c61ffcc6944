"""The objective: an expression over metrics and size that is maximised, such as ``psnr - 2*bits``.

It consists of numbers, names, + - * / and brackets, in Python's syntax; − × ÷ are accepted for - * /. Names are
metrics, ``bits`` (average bits per weight), ``bytes`` (packed, of the quantized layers) and ``bops`` (bit operations of
a forward of the denoiser). Nothing else is evaluated.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn, Protocol

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.catalogue import METRICS, Metric
from qua2sedimo.options import Configuration, bit_operations

SIZES = ("bits", "bytes", "bops")
_TOKEN = re.compile(r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>\S)")
#: Far more than any use has; Python reads and computes deeper expressions by recursion, which has an end.
_MOST_CHARACTERS, _MOST_TOKENS = 2000, 150
_ASCII = str.maketrans("−×÷", "-*/")
_SIGNS: Mapping[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}

Value = float | np.ndarray


class Measured(Protocol):
    """The metrics of a measurement: ``values`` per image, ``means`` of all metrics, including set metrics."""

    @property
    def values(self) -> Mapping[str, Sequence[float]]: ...
    @property
    def means(self) -> Mapping[str, float]: ...


class MeasuredConfiguration(Protocol):
    """A configuration, its size and its measurement, such as a record."""

    @property
    def configuration(self) -> Configuration: ...
    @property
    def average_bits(self) -> float: ...
    @property
    def measurement(self) -> Measured: ...


@dataclass(frozen=True)
class Objective:
    """An expression, and how its values are computed.

    ``weights``: number of quantized weights, for ``bytes``; ``macs``: multiply-accumulates of each layer, for ``bops``.

    A metric's name alone is optimised in the metric's own direction; any other expression is maximised.
    """

    text: str
    expression: ast.expr = field(compare=False, repr=False)
    weights: int = 0
    macs: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, weights: int = 0, macs: Mapping[str, int] | None = None) -> Objective:
        """Raises :class:`Qua2SeDiMoError` pointing at the invalid character, or if there is no metric."""
        found = cls(text.strip(), _parsed(text), weights, macs or {})
        if not found.metrics:
            raise Qua2SeDiMoError(
                f"objective '{text}' names no metric", f"Without one nothing is measured; known: {', '.join(METRICS)}."
            )
        return found

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Distinct names, in order of appearance."""
        found = [node for node in ast.walk(self.expression) if isinstance(node, ast.Name)]
        return tuple(dict.fromkeys(node.id for node in sorted(found, key=lambda node: node.col_offset)))

    @property
    def metrics(self) -> list[str]:
        """The metrics that must be measured."""
        return [name for name in self.names if name not in SIZES]

    @property
    def _bare(self) -> Metric | None:
        return METRICS[self.expression.id] if isinstance(self.expression, ast.Name) else None

    @property
    def higher_is_better(self) -> bool:
        return self._bare is None or self._bare.higher_is_better

    @property
    def sign(self) -> int:
        """1 if a larger value is better, else −1."""
        return 1 if self.higher_is_better else -1

    @property
    def in_decibels(self) -> bool:
        """Whether models of squared error can be fitted to it: all names are metrics in decibels, and factors add up to
        1, as in ``0.5*psnr + 0.5*features_db``, the geometric mean of two errors."""
        if any(name in SIZES or METRICS[name].unit != "dB" for name in self.names):
            return False
        at = [self.of(dict.fromkeys(self.metrics, level), 0.0) for level in (20.0, 30.0, 40.0)]
        return bool(np.allclose(np.diff(at), 10.0))

    def of_images(self, values: Mapping[str, Sequence[float]]) -> np.ndarray:
        """The value of each image [images], for an objective of per-image metrics without sizes."""
        return self._of_arrays(values, float("nan"), None)

    @property
    def title(self) -> str:
        return self.text if self._bare is None else self._bare.title

    @property
    def unit(self) -> str:
        """The unit that all its metrics share; empty if they differ."""
        units = {METRICS[name].unit for name in self.metrics}
        return units.pop() if len(units) == 1 else ""

    def of(self, metrics: Mapping[str, float], bits: float, configuration: Configuration | None = None) -> float:
        """The value for measured metrics at ``bits`` average bits; ``bops`` need the configuration."""
        return float(self._evaluated({name: metrics[name] for name in self.metrics}, bits, configuration))

    def value(self, record: MeasuredConfiguration) -> float:
        return self.of(record.measurement.means, record.average_bits, record.configuration)

    def gain(self, record: MeasuredConfiguration) -> float:
        """The value, negated if smaller is better."""
        return self.sign * self.value(record)

    def per_image(self, record: MeasuredConfiguration) -> np.ndarray | None:
        """The value of each image [images]; None if it includes a set metric."""
        values = record.measurement.values
        if any(name not in values for name in self.metrics):
            return None
        return self._of_arrays(values, record.average_bits, record.configuration)

    def _of_arrays(
        self, values: Mapping[str, Sequence[float]], bits: float, configuration: Configuration | None
    ) -> np.ndarray:
        arrays = {name: np.asarray(values[name], dtype=np.float64) for name in self.metrics}
        return np.asarray(self._evaluated(arrays, bits, configuration), dtype=np.float64)

    def _evaluated(self, metrics: Mapping[str, Value], bits: float, configuration: Configuration | None) -> Value:
        if "bytes" in self.names and not self.weights:
            raise Qua2SeDiMoError(f"objective '{self.text}': bytes need the number of quantized weights")
        names = {**metrics, "bits": bits, "bytes": bits * self.weights / 8}
        if "bops" in self.names:
            names["bops"] = self._bops(configuration)
        try:
            with np.errstate(all="ignore"):
                value = _value(self.expression, names)
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
                "The study's graph.json is older than `bops`: move it away, and it will be traced again.",
            )
        return float(bit_operations(self.macs, configuration))


def _parsed(text: str) -> ast.expr:
    """The expression as a Python syntax tree; raises :class:`Qua2SeDiMoError` pointing at a syntax error."""
    tokens = list(_TOKEN.finditer(text.translate(_ASCII))) if len(text) <= _MOST_CHARACTERS else []
    if len(text) > _MOST_CHARACTERS or len(tokens) > _MOST_TOKENS:
        most = f"An objective has at most {_MOST_CHARACTERS} characters, and {_MOST_TOKENS} numbers, names and signs."
        raise Qua2SeDiMoError(f"objective '{text[:40]}…' is too long", most)
    _check(text, tokens)
    # Python rejects leading zeros, and would read integers.
    words = [repr(float(m[0])).replace("inf", "1e999") if m.lastgroup == "number" else m[0] for m in tokens]
    try:
        return ast.parse(" ".join(words), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Qua2SeDiMoError(f"objective '{text}' cannot be read: {error}", "Write it with fewer brackets.") from error


def _check(text: str, tokens: Sequence[re.Match[str]]) -> None:
    """Raise unless operands and operators alternate, brackets match, and names are known."""
    operand, brackets = True, 0  # whether an operand is expected next; number of open brackets
    for token in tokens:
        found = token[0]
        if operand and token.lastgroup != "sign":
            if token.lastgroup == "name":
                _check_name(text, found, token.start())
            operand = False
        elif operand and found in "+-(":
            brackets += found == "("
        elif not operand and found in "+-*/":
            operand = True
        elif not operand and found == ")" and brackets:
            brackets -= 1
        else:
            expected = "a number, a name or '('" if operand else "')'" if brackets else "an operator"
            _refuse(text, f"expected {expected}, found '{text[token.start() : token.end()]}'", token.start())
    if operand:
        _refuse(text, "expected a number, a name or '(', found the end", len(text))
    if brackets:
        _refuse(text, "expected ')', found the end", len(text))


def _check_name(text: str, name: str, at: int) -> None:
    known = [*METRICS, *SIZES]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        _refuse(text, f"unknown name '{name}'.{meant}", at, f"Known: {', '.join(known)}.")


def _refuse(
    text: str, what: str, at: int, remedy: str = "An objective consists of numbers, names, + - * / and brackets."
) -> NoReturn:
    raise Qua2SeDiMoError(f"objective: {what}\n  {text}\n  {' ' * at}^", remedy)


def _value(node: ast.expr, names: Mapping[str, Value]) -> Any:
    """The value of a syntax tree of names, numbers and arithmetic; raises TypeError for any other node."""
    if isinstance(node, ast.BinOp):
        return _SIGNS[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.UnaryOp):
        return _SIGNS[type(node.op)](_value(node.operand, names))
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        return node.value
    raise TypeError(f"an objective has no {type(node).__name__}")
