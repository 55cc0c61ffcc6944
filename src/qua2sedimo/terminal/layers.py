"""The layers of a model: blocks, shapes, and bytes under each option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Column, Table
from rich.text import Text

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.formats.text import short_size, size_text
from qua2sedimo.inspection import Inspection
from qua2sedimo.terminal.console import table


def layer_tree(inspection: Inspection, pattern: str, width: int) -> Table:
    """Blocks, and in each its layers and parts: operation, shape, weights, share, bytes under each option that fits."""
    space = inspection.space
    units = inspection.matching(pattern)
    blocks: dict[str, list[WeightLayer]] = {}
    for unit in units:
        blocks.setdefault(unit.block, []).append(unit)
    every = inspection.graph.layers.values()
    prefix = {block: _common_path([unit.module for unit in every if unit.block == block]) for block in blocks}
    longest = max(len(unit.name) - len(prefix[unit.block]) + len(_copies(unit)) for unit in units)
    fitting = max(1, (width - longest - 54) // 11)
    shown = space.union[:fitting]
    names = [Column(name, overflow="fold") for name in ("block, layer", "operation", "shape")]
    title = f"{inspection.graph.denoiser}: {len(inspection.layers)} weight layers, {inspection.weights:,} weights"
    made = table(*names, "weights", "share", *(str(option).replace("-", "\n") for option in shown), title=title)
    for block, members in blocks.items():
        weights = sum(unit.weights for unit in members)
        parts = sum(unit.span is not None for unit in members)
        what = f"{len(members)} units" + (f", {parts} parts" if parts else "")
        totals = [sum(option.nbytes(unit.shape) for unit in members) for option in shown]
        name = Text(f"{block}  {prefix[block]}")
        made.add_row(name, "", what, *_amounts(weights, space.weights, totals), style="bold")
        for unit in members:
            sizes = [option.nbytes(unit.shape) if option in space.options[unit.name] else None for option in shown]
            cells = _amounts(unit.weights, space.weights, sizes)
            shape = "×".join(map(str, unit.shape))
            made.add_row(Text(f"  {unit.name[len(prefix[block]) :]}{_copies(unit)}"), unit.operation, shape, *cells)
    if len(shown) < len(space.union):
        made.caption = (
            f"{len(space.union) - len(shown)} more options do not fit: --json has all, --options selects some."
        )
    return made


def _copies(unit: WeightLayer) -> str:
    return f" (and {len(unit.copies)} copies)" if unit.copies else ""


def _common_path(names: Sequence[str]) -> str:
    """The modules that all names lie in, with the last dot: ``transformer_blocks.3.``."""
    first, *_ = paths = [name.split(".")[:-1] for name in names]
    depth = next((i for i in range(len(first)) if len({tuple(p[: i + 1]) for p in paths}) > 1), len(first))
    return "".join(f"{part}." for part in first[:depth]) if len(names) > 1 else ""


def _amounts(weights: int, total: int, sizes: Sequence[int | None]) -> list[str]:
    cells = ["" if nbytes is None else short_size(nbytes) for nbytes in sizes]
    return [f"{weights:,}", f"{100 * weights / total:.1f} %", *cells]


def inspection_notes(inspection: Inspection) -> Iterator[str]:
    """Totals; layers that stay as they are; weights that may be shared; further denoisers."""
    space, graph = inspection.space, inspection.graph
    low, high = space.byte_range()
    parts = sum(unit.span is not None for unit in graph.layers.values())
    yield (
        f"16 bits: {size_text(2 * space.weights)}; these options reach {8 * low / space.weights:.2f} to "
        f"{8 * high / space.weights:.2f} average bits ({size_text(low)} to {size_text(high)})."
    )
    yield (
        f"Graph: {len(graph.nodes)} nodes, {len(graph.edges)} edges; {len(graph.layers)} units, {parts} of them parts "
        f"of layers that read a concatenation. Inputs: {inspection.inputs}."
    )
    if not inspection.values:
        yield "Architecture only: no weights were read."
    for name in graph.bypassed:
        yield f"not quantized: {name} (its module is never called, or does not reach the output)"
    for name in graph.left_alone:
        yield f"not quantized: {name} (it has weights, but is no Linear or Conv layer)"
    for group in graph.tied_candidates:
        yield f"may hold the same weights in {len(group)} blocks: {group[0]} … (their values will show it)"
    if inspection.others:
        yield f"further denoisers of this pipeline: {', '.join(inspection.others)} (--component)"
