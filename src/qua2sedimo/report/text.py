"""Numbers as people read them, and the sentences at the head of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from qua2sedimo.report.data import MetricInfo, MetricValue, ReportData, TableRow


def size_text(nbytes: float) -> str:
    """``12.3 MB``; decimal units, as disks and hubs count."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= one:
            return f"{nbytes / one:#.3g}".rstrip(".") + f" {unit}"
    return f"{nbytes:.0f} bytes"


def count_text(count: float) -> str:
    """``6.1 million``; small counts in full."""
    for unit, one in (("billion", 1e9), ("million", 1e6)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count:,.0f}"


def digits_for(values: Iterable[MetricValue]) -> int:
    """How many decimals a column needs: one or two significant digits of its typical half-interval."""
    widths = sorted(
        (value.high - value.low) / 2
        for value in values
        if math.isfinite(value.high - value.low) and value.high > value.low
    )
    if not widths:
        return 2
    half = widths[len(widths) // 2]
    power = math.floor(math.log10(half))
    return min(6, max(0, -power + (half < 3.55 * 10**power)))


def number(value: float, digits: int) -> str:
    """A number with a true minus sign; ``∞`` and ``–`` for what is none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def interval(value: MetricValue, digits: int) -> str:
    """``26.3 to 28.0``, or nothing when there is no interval."""
    if not math.isfinite(value.high - value.low) or value.high <= value.low:
        return ""
    return f"{number(value.low, digits)} to {number(value.high, digits)}"


def headline(data: ReportData) -> str:
    """One sentence: from what size to what size."""
    times = data.full_bytes / data.ours_bytes if data.ours_bytes else math.inf
    return (
        f"The weights of {data.model} shrink from {size_text(data.full_bytes)} to "
        f"{size_text(data.ours_bytes)}: {times:.1f} times smaller, "
        f"{data.ours_bits:.2f} bits per weight, every scale and codebook counted."
    )


def verdict(data: ReportData) -> str:
    """What that costs in quality, beside uniform quantization; empty when ours was not measured."""
    info = data.objective_info
    ours = next((row for row in data.table if row.kind == "ours" and info.name in row.metrics), None)
    if ours is None or not math.isfinite(ours.metrics[info.name].value):
        return ""
    value = ours.metrics[info.name]
    uniform = [
        row
        for row in data.table
        if row.kind == "uniform" and info.name in row.metrics and math.isfinite(row.metrics[info.name].value)
    ]
    digits = digits_for([value, *(row.metrics[info.name] for row in uniform)])
    way = "higher" if info.higher_is_better else "lower"
    sentences = [f"{info.title} is {_with_interval(value, info, digits)}; {way} is better."]
    no_larger = [row for row in uniform if row.bits <= ours.bits + 0.005]
    if no_larger:
        rival = min(no_larger, key=lambda row: -_goodness(row, info))
        theirs = rival.metrics[info.name]
        sentences.append(
            f"The best uniform choice that is no larger, “{rival.name}” ({rival.bits:.2f} bits per weight), "
            f"reaches {_with_interval(theirs, info, digits)}: {_compared(value, theirs, info)}."
        )
    as_good = [row for row in uniform if _goodness(row, info) >= _goodness(ours, info)]
    if as_good:
        smallest = min(as_good, key=lambda row: row.bits)
        sentences.append(
            f"The smallest uniform choice at least as good is “{smallest.name}” ({smallest.bits:.2f} bits per weight)."
        )
    elif uniform:
        sentences.append("No uniform choice in the table is as good.")
    return " ".join(sentences)


def _goodness(row: TableRow, info: MetricInfo) -> float:
    value = row.metrics[info.name].value
    return value if info.higher_is_better else -value


def _with_interval(value: MetricValue, info: MetricInfo, digits: int) -> str:
    unit = f" {info.unit}" if info.unit else ""
    spread = interval(value, digits)
    return f"{number(value.value, digits)}{unit}" + (f" ({spread})" if spread else "")


def _compared(ours: MetricValue, other: MetricValue, info: MetricInfo) -> str:
    if overlap(ours, other):
        return "no clear difference, as the intervals overlap"
    return "ours is clearly better" if (ours.value > other.value) == info.higher_is_better else "ours is clearly worse"


def overlap(a: MetricValue, b: MetricValue) -> bool:
    """Whether two intervals share a value, so that the difference is not clear."""
    return a.low <= b.high and b.low <= a.high
