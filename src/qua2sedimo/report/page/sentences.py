"""The sentences at the head of the page, and its glossary."""

from __future__ import annotations

import math

from qua2sedimo.formats.text import size_text
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.report.data import ReportData, TableRow
from qua2sedimo.report.text import digits_for, with_interval

#: Each term of the page, explained once.
WORDS = (
    ("quantization", "Storing each weight in few bits instead of 16, so that the model is smaller and less exact."),
    ("bits per weight", "Stored size divided by the number of weights, every scale, zero point and codebook counted."),
    ("full precision", "The model before quantization, in 16 bits."),
    ("uniform", "The same option for every layer, as quantization is usually done."),
    ("option", "Method and width of one layer: row has fixed values times a scale for each channel; uaq has "
     "evenly spaced values; kmeans_c and kmeans_a have a codebook, for each channel or for the whole layer; the number "
     "is bits. lowrank is a product of two thin matrices; the number is its rank."),
    ("configuration", "One option for every layer; ours is the configuration that was chosen for this budget."),
    ("95 % interval", "From drawing the measured pictures again at random (bootstrap): the mean over very many "
     "pictures lies within it in about 95 of 100 cases."),
    ("block, operation", "A block is a repeated part of the network, an operation what a layer does in it. SA: "
     "self-attention, CA: cross-attention to the prompt; Q, K, V, Out: its query, key, value and output layers; FF: "
     "feed-forward; t-Embed, c-Embed: embedding of time and condition; AdaLN: layers that turn these into scales."),
    ("predictor, fold", "A model that learned from measured configurations what each option costs; each of its folds "
     "learned from another part of them, so that differences between folds show how sure it is."),
    ("score", "The predictor's value of an option without a unit; higher is better."),
)  # fmt: skip


def headline(data: ReportData) -> str:
    """One sentence: from which size to which size."""
    times = data.full_bytes / data.ours_bytes if data.ours_bytes else math.inf
    return (
        f"The weights of {data.model} shrink from {size_text(data.full_bytes)} to {size_text(data.ours_bytes)}: "
        f"{times:.1f} times smaller, {data.ours_bits:.2f} bits per weight, every scale and codebook counted."
    )


def verdict(data: ReportData) -> str:
    """What that costs in quality, compared with uniform quantization; empty when ours was not measured."""
    info = data.objective
    known = [r for r in data.table if info.name in r.metrics and math.isfinite(r.metrics[info.name].value)]
    ours = next((row for row in known if row.kind == "ours"), None)
    if ours is None:
        return ""
    uniform = [row for row in known if row.kind == "uniform"]
    digits = digits_for([row.metrics[info.name] for row in (ours, *uniform)])

    def goodness(row: TableRow) -> float:
        return row.metrics[info.name].value * (1 if info.higher_is_better else -1)

    def text(row: TableRow) -> str:
        return with_interval(row.metrics[info.name], digits, info.unit)

    way = "higher" if info.higher_is_better else "lower"
    sentences = [f"{info.title} is {text(ours)}; {way} is better."]
    no_larger = [row for row in uniform if row.bits <= ours.bits + 0.005]
    if no_larger:
        rival = max(no_larger, key=goodness)
        ours_is = "better" if goodness(ours) > goodness(rival) else "worse"
        sentences.append(
            f"The best uniform choice that is no larger, “{rival.name}” ({rival.bits:.2f} bits per weight), "
            f"reaches {text(rival)}: {_compared(ours.metrics[info.name], rival.metrics[info.name], ours_is)}."
        )
    as_good = [row for row in uniform if goodness(row) >= goodness(ours)]
    if as_good:
        smallest = min(as_good, key=lambda row: row.bits)
        sentences.append(
            f"The smallest uniform choice at least as good is “{smallest.name}” ({smallest.bits:.2f} bits per weight)."
        )
    elif uniform:
        sentences.append("No uniform choice in the table is as good.")
    return " ".join(sentences)


def _compared(ours: Estimate, other: Estimate, ours_is: str) -> str:
    if overlap(ours, other):
        return "no clear difference, as the intervals overlap"
    if ours.low > other.high or ours.high < other.low:
        return f"ours is clearly {ours_is}"
    return f"ours is {ours_is}, perhaps by chance, as there is no interval"


def overlap(a: Estimate, b: Estimate) -> bool:
    """Whether two intervals share a value, so that the difference is not clear; False where one has no interval."""
    return a.low <= b.high and b.low <= a.high
