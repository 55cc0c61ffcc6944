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
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight, levels_of, quantization_error
from qua2sedimo.terminal.console import table

_BARS = " ▁▂▃▄▅▆▇█"
_COVERED = 0.998  # share of the weights that the histogram's range holds; single outliers would flatten it


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


def weight_table(title: str, weight: torch.Tensor, options: Sequence[Option], width: int) -> Table:
    """:func:`layer_options_table` for any weight [output channels, ...] in fp16 or bf16."""
    values = weight.float().reshape(-1).numpy()
    low = np.quantile(values, (1 - _COVERED) / 2, method="lower")
    high = np.quantile(values, (1 + _COVERED) / 2, method="higher")
    if low == high:
        low, high = low - 1e-6 - abs(low) / 2, high + 1e-6 + abs(high) / 2
    edges = np.linspace(low, high, width + 1)
    counts = np.histogram(values, edges)[0]
    columns = [
        Column(name, justify="right", vertical="bottom", no_wrap=True)
        for name in ("levels", "relative error", "dB", "mean |e|^2.4", "bytes", "bits")
    ]
    histogram = Column("\n".join(_columns(counts, 6)), no_wrap=True)
    made = table("option", histogram, *columns, title=title, box=None)
    for value in _quantized(weight, options):
        levels = levels_of(value, torch.float32).numpy()
        loss, relative = quantization_error(weight, dequantize_weight(value))
        bits = 8 * value.nbytes / max(1, weight.numel())
        made.add_row(
            value.option,
            Text(_columns(np.histogram(levels.reshape(-1), edges)[0], 1)[0], style="cyan"),
            f"{levels.shape[1]}" if levels.shape[0] == 1 else f"{levels.shape[1]} × {levels.shape[0]:,}",
            f"{relative:.3g}",
            f"{-10 * np.log10(relative):.1f}" if relative > 0 else "exact",
            f"{loss:.3g}",
            f"{value.nbytes:,}",
            f"{bits:.2f}",
        )
    made.add_row("", f"{low:<{width // 2}.3g}{high:>{width - width // 2}.3g}", style="dim")
    return made


def _quantized(weight: torch.Tensor, options: Sequence[Option]) -> list[QuantizedWeight]:
    """By falling bits, so that neighbours compare methods."""
    values = []
    for method in dict.fromkeys(o.method for o in options):
        values += METHODS[method].quantize(weight, [o.number for o in options if o.method == method])
    return sorted(values, key=lambda v: (-v.nbytes, v.method))


def _columns(counts: np.ndarray, height: int) -> list[str]:
    """Counts as a bar chart of ``height`` lines; a count above zero is always visible."""
    most = max(1, int(counts.max()))
    eighths = np.ceil(counts / most * height * 8).astype(int)
    return ["".join(_BARS[min(8, max(0, e - 8 * line))] for e in eighths) for line in reversed(range(height))]
