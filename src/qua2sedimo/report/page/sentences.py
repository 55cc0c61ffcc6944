"""The sentences at the head of the page, and its glossary."""

from __future__ import annotations

import math

from qua2sedimo.formats.text import size_text
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.report.data import MetricInfo, ReportData, TableRow
from qua2sedimo.report.text import decimals, digits_for, has_interval, number, with_interval

#: PSNR in dB: from the first on, two pictures look the same to most people; below the second they plainly differ.
_SAME, _PLAIN = 40.0, 30.0
#: Each term of the page, explained once.
WORDS = (
    ("quantization", "Storing each weight in few bits instead of 16, so that the model is smaller and less exact."),
    ("bits per weight", "Stored size divided by the number of weights, every scale, zero point and codebook counted."),
    ("full precision", "The model before quantization, in 16 bits."),
    ("uniform", "The same option for every layer, as quantization is usually done."),
    ("other tools", "What a program that writes GGUF files makes of the same model: linear layers in one type, rounded "
     "to the nearest level, all others in 16 bits. Q4_K and Q8_0 are its usual types of about 4.5 and 8.5 bits."),
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


def answers(data: ReportData) -> list[tuple[str, str]]:
    """Questions that a reader has first, and what was measured about them; those without an answer are left out."""
    found = [
        ("Is it good enough?", quality(data)),
        ("What does it save?", savings(data)),
        ("What does it need?", needs(data)),
    ]
    return [(question, answer) for question, answer in found if answer]


def quality(data: ReportData) -> str:
    """The objective of ours with its interval and, in decibels of single pictures, what that looks like."""
    ours, known = _ours(data), _measured(data)
    if ours is None:
        return ""
    info, value = data.objective, ours.metrics[data.objective.name]
    text = with_interval(value, digits_for([row.metrics[info.name] for row in known]), info.unit)
    if info.name != "psnr":
        way = "higher" if info.higher_is_better else "lower"
        return f"{info.title} is {text}; {way} is better. Look at the pictures below."
    low, high = (value.low, value.high) if has_interval(value) else (value.value, value.value)
    if low >= _SAME:
        said = "Yes, for most uses: pictures are hard to tell from those of full precision."
    elif high < _PLAIN:
        said = "For drafts at most: pictures visibly differ from those of full precision."
    else:
        said = "Probably: pictures are close to those of full precision, with differences that can be seen in places."
    return (
        f"{said} PSNR is {text}; from about {_SAME:g} dB on, two pictures look the same to most people, and below "
        f"{_PLAIN:g} dB they plainly differ."
    )


def savings(data: ReportData) -> str:
    """Beside one option for every layer, and beside what other tools make: at no more bytes, and at the same quality;
    empty when ours was not measured."""
    ours = _ours(data)
    if ours is None:
        return ""
    sentences = []
    for kind, others in (("uniform", "uniform choice"), ("outside", "file of another tool")):
        rivals = [row for row in _measured(data) if row.kind == kind]
        if rivals:
            sentences += [_at_no_more_bytes(data, ours, rivals, others), _as_good(data, ours, rivals, others)]
    return " ".join(filter(None, sentences))


def _at_no_more_bytes(data: ReportData, ours: TableRow, rivals: list[TableRow], others: str) -> str:
    no_larger = [row for row in rivals if row.bits <= ours.bits + 0.005]
    if not no_larger:
        return ""
    info = data.objective
    rival = max(no_larger, key=lambda row: _goodness(row, info))
    ours_is = "better" if _goodness(ours, info) > _goodness(rival, info) else "worse"
    text = with_interval(rival.metrics[info.name], digits_for([r.metrics[info.name] for r in (ours, rival)]), info.unit)
    return (
        f"The best {others} that is no larger, “{rival.name}” ({rival.bits:.2f} bits per weight), "
        f"reaches {text}: {_compared(ours.metrics[info.name], rival.metrics[info.name], ours_is)}."
    )


def _as_good(data: ReportData, ours: TableRow, rivals: list[TableRow], others: str) -> str:
    """How much smaller ours is than the smallest one that is as good."""
    info = data.objective
    as_good = [row for row in rivals if _goodness(row, info) >= _goodness(ours, info)]
    if not as_good:
        largest = max(row.bits for row in rivals)
        return f"No {others} in the table is as good, up to {largest:.2f} bits per weight."
    smallest = min(as_good, key=lambda row: row.bits)
    said = f"The smallest {others} at least as good is “{smallest.name}” ({smallest.bits:.2f} bits per weight)"
    saved = 1 - ours.nbytes / smallest.nbytes if smallest.nbytes else 0.0
    return f"{said}: ours saves {100 * saved:.0f} % of its bytes." if saved > 0.005 else f"{said}."


def needs(data: ReportData) -> str:
    """Memory of the weights, and seconds of a picture as far as they were measured."""
    if not data.ours_bytes:
        return ""
    said = [
        f"{size_text(data.ours_bytes)} of memory for these weights, packed, in place of {size_text(data.full_bytes)}"
    ]
    if data.other_bytes:
        said[0] += f"; the rest of the pipeline takes {size_text(data.other_bytes)} as before"
    ours, seconds = _ours(data), [row.seconds for row in data.table if row.kind == "uniform" and row.seconds]
    if ours is not None and ours.seconds and seconds:
        usual = sorted(seconds)[len(seconds) // 2]
        said.append(
            f"A picture took {_seconds(ours.seconds)} here with packed weights, which are decoded when they are used, "
            f"and {_seconds(usual)} with weights in 16 bits"
        )
    return ". ".join(said) + "."


def _seconds(value: float) -> str:
    return f"{number(value, decimals(value))} s"


def _measured(data: ReportData) -> list[TableRow]:
    """Rows of the table in which the objective was measured."""
    name = data.objective.name
    return [row for row in data.table if name in row.metrics and math.isfinite(row.metrics[name].value)]


def _ours(data: ReportData) -> TableRow | None:
    return next((row for row in _measured(data) if row.kind == "ours"), None)


def _goodness(row: TableRow, info: MetricInfo) -> float:
    return row.metrics[info.name].value * (1 if info.higher_is_better else -1)


def _compared(ours: Estimate, other: Estimate, ours_is: str) -> str:
    if overlap(ours, other):
        return "no clear difference, as the intervals overlap"
    if ours.low > other.high or ours.high < other.low:
        return f"ours is clearly {ours_is}"
    return f"ours is {ours_is}, perhaps by chance, as there is no interval"


def overlap(a: Estimate, b: Estimate) -> bool:
    """Whether two intervals share a value, so that the difference is not clear; False where one has no interval."""
    return a.low <= b.high and b.low <= a.high
