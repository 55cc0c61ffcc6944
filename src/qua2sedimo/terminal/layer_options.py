"""One layer: the histogram of its weights, and under it the levels, error and size of each option."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import torch
from rich.table import Column, Table
from rich.text import Text
from torch import nn

from qua2sedimo.bank import stored_weight
from qua2sedimo.denoisers import weight_modules, weight_of
from qua2sedimo.denoisers.names import operation_type
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option, options_for
from qua2sedimo.quantizers import (
    LEVEL_METHODS,
    METHODS,
    Moment,
    QuantizedWeight,
    dequantize_weight,
    levels_of,
    quantization_error,
)
from qua2sedimo.terminal.console import table

_BARS = " ▁▂▃▄▅▆▇█"
_LEAST, _MOST = 8, 60  # characters of a histogram
_NUMBERS = 74  # characters of the columns beside it
_COVERED = 0.998  # share of the weights that the histogram's range holds; single outliers would flatten it


def histogram_width(columns: int) -> int:
    """Characters that are left for the histogram on a terminal with this many columns."""
    return max(_LEAST, min(_MOST, columns - _NUMBERS))


def layer_options_table(denoiser: nn.Module, layer: str, option_set: str, width: int = 60) -> Table:
    """The histogram of a layer's weights and a row an option of ``option_set``: levels, error, bytes.

    Levels are drawn below the weights they stand for, higher where many channels have one. The relative error is
    ‖e‖²/‖W‖², in decibels too: 6 dB is what one more bit buys on average. Raises :class:`Qua2SeDiMoError` if there
    is no such layer, naming those that look like it.
    """
    modules = weight_modules(denoiser)
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, n=3, cutoff=0.4)
        raise Qua2SeDiMoError(
            f"{type(denoiser).__name__} has no weight layer '{layer}'",
            f"Like it: {', '.join(near)}." if near else "`qua2sedimo inspect MODEL` lists them.",
        )
    weight = stored_weight(weight_of(modules[layer])).cpu()
    shape = "×".join(map(str, weight.shape))
    title = f"{layer}: {operation_type(layer, denoiser)}, {shape}, {weight.numel():,} weights, {weight.dtype}"
    return weight_table(title.replace("torch.", ""), weight, options_for(option_set, tuple(weight.shape)), width)


def weight_table(
    title: str, weight: torch.Tensor, options: Sequence[Option], width: int, moment: Moment | None = None
) -> Table:
    """:func:`layer_options_table` for any weight [output channels, ...] in fp16 or bf16.

    With the ``moment`` of its inputs, rounding is compensated, and there is a column for the relative error of the
    output. A low-rank option has no levels; its values are drawn instead.
    """
    values = weight.float().reshape(-1).numpy()
    low = np.quantile(values, (1 - _COVERED) / 2, method="lower")
    high = np.quantile(values, (1 + _COVERED) / 2, method="higher")
    if low == high:
        low, high = low - 1e-6 - abs(low) / 2, high + 1e-6 + abs(high) / 2
    edges = np.linspace(low, high, width + 1)
    counts = np.histogram(values, edges)[0]
    columns = [
        Column(name, justify="right", vertical="bottom", no_wrap=True)
        for name in (
            "levels",
            *(["output,\ndB"] if moment else []),
            "relative\nerror",
            "dB",
            "mean\n|e|^2.4",
            "bytes",
            "bits",
        )
    ]
    histogram = Column("\n".join(_columns(counts, 6)), no_wrap=True)
    made = table(Column("option", vertical="bottom", no_wrap=True), histogram, *columns, title=title, box=None)
    for value in _quantized(weight, options, moment):
        decoded = dequantize_weight(value)
        named = value.method in LEVEL_METHODS
        levels = (levels_of(value, torch.float32) if named else decoded.float().reshape(1, -1)).numpy()
        loss, relative = quantization_error(weight, decoded)
        bits = 8 * value.nbytes / max(1, weight.numel())
        made.add_row(
            value.option,
            Text(_columns(np.histogram(levels.reshape(-1), edges)[0], 1)[0], style="cyan"),
            "–" if not named else f"{levels.shape[1]}" + ("" if len(levels) == 1 else f" × {len(levels):,}"),
            *([_decibels(moment.output_errors(weight, decoded)[1])] if moment else []),
            f"{relative:.3g}",
            _decibels(relative),
            f"{loss:.3g}",
            f"{value.nbytes:,}",
            f"{bits:.2f}",
        )
    made.add_row("", f"{low:<{width // 2}.3g}{high:>{width - width // 2}.3g}", style="dim")
    return made


def _decibels(relative: float) -> str:
    return f"{-10 * np.log10(relative):.1f}" if relative > 0 else "exact"


def _quantized(
    weight: torch.Tensor, options: Sequence[Option], moment: Moment | None = None
) -> list[QuantizedWeight]:  # fmt: skip
    """By falling bits, so that neighbours compare methods."""
    values = []
    for method in dict.fromkeys(o.method for o in options):
        values += METHODS[method].quantize(weight, [o.number for o in options if o.method == method], moment)
    return sorted(values, key=lambda v: (-v.nbytes, v.method))


def _columns(counts: np.ndarray, height: int) -> list[str]:
    """Counts as a bar chart of ``height`` lines; a count above zero is always visible."""
    most = max(1, int(counts.max()))
    eighths = np.ceil(counts / most * height * 8).astype(int)
    return ["".join(_BARS[min(8, max(0, e - 8 * line))] for e in eighths) for line in reversed(range(height))]
