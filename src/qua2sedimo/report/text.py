"""Numbers as people read them, and text that cannot become markup."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.report.data import MetricInfo, TableRow

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$!&])")


def escaped(text: str) -> str:
    """``text`` for Markdown: on one line, and without any markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def count_text(count: float) -> str:
    """``6.1 million``; small counts in full."""
    for unit, one in (("billion", 1e9), ("million", 1e6)):
        if count >= 0.9995 * one:
            return f"{count / one:.3g} {unit}"
    return f"{count:,.0f}"


def number(value: float, digits: int) -> str:
    """A number with a true minus sign; ``∞``, and ``–`` for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def decimals(size: float, digits: int = 2) -> int:
    """How many decimals show ``digits`` digits of a number of this size: from 0 to 6."""
    return min(6, max(0, digits - 1 - math.floor(math.log10(abs(size))))) if size and math.isfinite(size) else digits


def digits_for(values: Iterable[Estimate]) -> int:
    """How many decimals a column needs: one or two digits of its typical half-interval."""
    halves = sorted(half for half in ((value.high - value.low) / 2 for value in values) if 0 < half < math.inf)
    if not halves:
        return 2
    half = halves[len(halves) // 2]
    return decimals(half, 2 if half < 3.55 * 10 ** math.floor(math.log10(half)) else 1)


def has_interval(value: Estimate) -> bool:
    """Whether the interval is known and not empty: one picture, or a value of a whole set, may have none."""
    return value.high > value.low and math.isfinite(value.high - value.low)


def interval(value: Estimate, digits: int) -> str:
    """``26.3 to 28.0``, or nothing when there is no interval."""
    return f"{number(value.low, digits)} to {number(value.high, digits)}" if has_interval(value) else ""


def cell(row: TableRow, info: MetricInfo, digits: int) -> tuple[str, str]:
    """Value and interval of a metric in a table; "same" where full precision would be compared with itself."""
    value = row.metrics.get(info.name)
    if value is None:
        return "–", ""
    if row.kind == "full" and info.paired:
        return "same", ""
    return number(value.value, digits), interval(value, digits)


def with_interval(value: Estimate, digits: int, unit: str = "") -> str:
    """``27.1 dB (26.3 to 28.0)``."""
    spread = interval(value, digits)
    return number(value.value, digits) + (f" {unit}" if unit else "") + (f" ({spread})" if spread else "")


def titled(info: MetricInfo) -> str:
    """The metric with its unit: ``PSNR (dB)``."""
    return f"{info.title} ({info.unit})" if info.unit else info.title
