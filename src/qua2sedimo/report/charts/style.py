"""How charts look: colours that colour-blind people can tell apart, on light and dark ground.

Text and lines that are not data take ``currentColor`` or the page's style sheet, so that one drawing serves both themes
and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
GREY, BLUE, ORANGE, VERMILION, GREEN, PURPLE, BROWN = (
    "#8b95a1", "#2f86d1", "#e69f00", "#d9520f", "#1b9e77", "#c2569b", "#7d5a3c",
)  # fmt: skip

#: Kind of a measured configuration: its name in the legend, colour, shape and size; in the order of drawing.
POINT_KINDS: dict[str, tuple[str, str, str, int]] = {
    "random": ("random", GREY, "circle", 26),
    "frontier": ("proposed for the frontier", GREEN, "circle", 70),
    "uniform": ("uniform", BLUE, "square", 110),
    "outside": ("other tools", BROWN, "triangle-down", 110),
    "candidate": ("candidate", ORANGE, "triangle-up", 80),
    "choice": ("other choice", PURPLE, "diamond", 150),
    "ours": ("ours", VERMILION, "diamond", 220),
}

FAMILIES: dict[str, tuple[str, str]] = {
    "self-attention": (BLUE, "circle"),
    "cross-attention": (PURPLE, "square"),
    "feed-forward": (ORANGE, "triangle-up"),
    "conditioning": (GREEN, "diamond"),
    "other": (GREY, "cross"),
}

#: Pale (1 bit) and full (8 bits, or rank 64) colour of each method.
METHOD_SHADES: dict[str, tuple[str, str]] = {
    "uaq": ("#cfe5f7", "#0d4f8f"),
    "kmeans_c": ("#fbe3b5", "#a65f00"),
    "row": ("#d5e8d4", "#1f6b3a"),
    "lowrank": ("#f3cfd9", "#9c2450"),
    "kmeans_a": ("#c8ebdd", "#0c6b4e"),
    "gguf_k": ("#d3dcf5", "#27408b"),
    "gguf_0": ("#f7d9c4", "#a0430a"),
    "gguf_1": ("#e6dcf2", "#5b2a86"),
    "gguf_nl": ("#d0ecee", "#12666d"),
    "half": ("#d9d9d9", "#4d4d4d"),
}

#: The colour of a cost of zero.
NOTHING = "#c2440a14"

METHOD_LETTERS = {
    "uaq": "U", "kmeans_c": "C", "kmeans_a": "A", "row": "R", "lowrank": "L", "half": "F",
    "gguf_k": "K", "gguf_0": "S", "gguf_1": "M", "gguf_nl": "N",
}  # fmt: skip


def family(operation: str) -> str:
    """The family of an operation type: the part of the network it belongs to."""
    if operation.startswith("SA-"):
        return "self-attention"
    if operation.startswith("CA-"):
        return "cross-attention"
    if operation.startswith("FF"):
        return "feed-forward"
    return "conditioning" if operation in ("AdaLN", "t-Embed", "c-Embed") else "other"


def short_option(option: str) -> str:
    """``kmeans_c-4`` as ``C4``: the letter of the method and the bits."""
    method, _, bits = option.rpartition("-")
    return f"{METHOD_LETTERS.get(method, method[:1].upper())}{bits}"


def is_dark(colour: str) -> bool:
    """Whether white text reads better on it than dark text, by WCAG's contrast."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in bytes.fromhex(colour[1:])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.18


def option_shade(option: str) -> str:
    """The colour of an option: its hue is the method, its depth the bits (1 to 8) or, of low rank, the rank (to 64)."""
    method, _, number = option.rpartition("-")
    pale, full = METHOD_SHADES.get(method, ("#e3d4e2", "#7a3b78"))
    share = math.log2(int(number)) / 6 if method == "lowrank" else (int(number) - 1) / 7
    return mixed(pale, full, min(1.0, share))


def cost_scale(costs: list[float]) -> alt.Scale:
    """Vermilion for what costs, blue for what gains; zero is almost transparent.

    Strong colours are opaque, so that they stand out on a light page and on a dark one.
    """
    high, low = max(0.0, *costs), min(0.0, *costs)
    reach = max(high, -low) or 1.0
    stops = {0.0: NOTHING, (high or 1.0): mixed(NOTHING, "#c2440aff", high / reach)}
    if low:
        nothing = "#0b5fa514"
        stops |= {low: mixed(nothing, "#0b5fa5ff", -low / reach), low * 1e-6: nothing}
    at = sorted(stops)
    kind: Any = "sqrt" if uneven(costs) else "linear"
    return alt.Scale(type=kind, domain=at, range=[stops[cost] for cost in at], clamp=True, interpolate="rgb")


def uneven(costs: Sequence[float]) -> bool:
    """Whether the largest cost is so far above the median one that a linear scale would show nothing else."""
    sizes = sorted(map(abs, costs))
    return bool(sizes) and sizes[-1] > 12 * sizes[len(sizes) // 2] > 0


def mixed(a: str, b: str, share: float) -> str:
    """The colour ``share`` of the way from ``a`` to ``b``."""
    channels = zip(bytes.fromhex(a[1:]), bytes.fromhex(b[1:]))
    return "#" + bytes(round(x + (y - x) * share) for x, y in channels).hex()


def bits_scale(bits: list[float]) -> alt.Scale:
    """From almost transparent (2 bits) to blue (the most bits chosen, 6 to 8)."""
    return alt.Scale(domain=[2.0, min(8.0, max(6.0, *bits))], range=["#1c6bb81a", "#1c6bb8ff"], clamp=True)


#: Of the numbers that a box plot's tooltip has by itself.
_TOOLTIP = {"numberFormat": ".2~r"}


def finish(chart: Any, description: str) -> Any:
    """Give a chart its alternative text and the common look."""
    text = {"labelFontSize": 12, "titleFontWeight": 500, "labelColor": "#444b54", "titleColor": "#2a3038"}
    lines = {"gridColor": "#e5e8ec", "tickColor": "#b8bfc8", "domainColor": "#b8bfc8"}
    axis = {**text, **lines, "titleFontSize": 12.5, "titlePadding": 10, "labelLimit": 190}
    legend = {**text, "titleFontSize": 12, "orient": "top", "columns": {"expr": "width < 430 ? 2 : 0"}}
    return (
        chart.properties(description=description, background="transparent")
        .configure(font=FONT, axis=axis, legend=legend, view=alt.ViewConfig(stroke=None), tooltipFormat=_TOOLTIP)
        .configure_text(fontSize=12)
    )


def cost_title(unit: str) -> str:
    """The axis of costs."""
    return f"{unit or 'score'} lost from 4 to 3 bits"


def height_for(width: Any, most: int) -> int:
    """The height of a plot: ``most``, but at most three quarters of a width in pixels."""
    return min(most, round(0.75 * width)) if isinstance(width, (int, float)) else most


def ticks_for(width: Any, most: int) -> int:
    """How many ticks an axis has room for: ``most``, or 5 in a width of at most 500 pixels."""
    return most if not isinstance(width, (int, float)) or width > 500 else min(most, 5)


def option_key() -> str:
    """Meaning of the letters in short option names."""
    return (
        "U = uniform quantization (UAQ), C = K-Means with a codebook for each channel, A = K-Means with one codebook "
        "for the layer; the number is bits."
    )


def in_order(names: Iterable[str]) -> list[str]:
    """The distinct names as they first appear, but ``input`` first and ``output`` last."""
    return sorted(dict.fromkeys(names), key=lambda name: {"input": 0, "output": 2}.get(name, 1))
