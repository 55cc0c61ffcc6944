"""Layouts: which ranges of an axis come from which graph node after a concatenation.

A concatenation creates a :class:`Layout`. Operations that do not mix positions along its axis propagate it: pointwise
operations, norms, resampling of other axes, views. The layout says where to split a layer that reads concatenated
channels, and that a slice within one operand depends on that operand alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

#: (kind, sources) → a new node of several sources; the source itself if there is one; None if there is none.
Join = Callable[[str, Iterable[int | None]], int | None]

_NORMS = {"native_layer_norm", "native_group_norm", "native_batch_norm", "fused_rms_norm"}
_COPIES = {"clone", "to_copy", "detach", "alias", "lift_fresh", "contiguous"}
_VIEWS = {"view", "unsafe_view", "reshape", "reshape_alias", "unsqueeze", "squeeze"}
_RESAMPLING = ("upsample_", "avg_pool", "adaptive_avg_pool", "max_pool", "constant_pad_nd")


@dataclass(frozen=True)
class Piece:
    """A range of the concatenated axis: its length, and the node it comes from (None: a constant)."""

    source: int | None
    size: int


@dataclass(frozen=True)
class Layout:
    """The axis of a concatenation and its pieces; ``mixed`` if a norm has computed statistics across the pieces."""

    axis: int
    pieces: tuple[Piece, ...]
    mixed: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Value:
    """What is known about a tensor: the node it comes from, and its layout if it was concatenated."""

    source: int | None = None
    layout: Layout | None = None


def concatenated(tensors: Sequence[torch.Tensor], values: Sequence[Value], dim: int, join: Join) -> Value:
    """The value of ``torch.cat(tensors, dim)``."""
    axis = dim % max(t.ndim for t in tensors)
    beside = _beside([value for tensor, value in zip(tensors, values) if tensor.ndim > axis], join)
    if beside.layout is not None and beside.layout.axis != axis:
        return beside
    pieces: list[Piece] = []
    mixed = False
    for tensor, value in zip(tensors, values):
        if tensor.ndim <= axis:  # torch.cat skips empty one-dimensional tensors
            continue
        if value.layout is not None and value.layout.axis == axis:
            pieces += value.layout.pieces
            mixed |= value.layout.mixed
        else:
            pieces.append(Piece(value.source, tensor.shape[axis]))
    source = join("concat", [value.source for value in values])
    return Value(source, Layout(axis, tuple(pieces), mixed) if len(pieces) > 1 else None)


def stacked(tensors: Sequence[torch.Tensor], values: Sequence[Value], dim: int, join: Join) -> Value:
    """The value of ``torch.stack(tensors, dim)``."""
    value = _beside(values, join)
    if value.layout is None:
        return value
    new = dim % (tensors[0].ndim + 1)
    return replace(value, layout=replace(value.layout, axis=value.layout.axis + (new <= value.layout.axis)))


def _beside(values: Sequence[Value], join: Join) -> Value:
    """The value of a concatenation along another axis than that of the operands' layouts, kept if they all agree."""
    source = join("concat", [value.source for value in values])
    layouts = [value.layout for value in values if value.layout is not None]
    if not layouts or len(layouts) < len(values) or len({(each.axis, each.sizes) for each in layouts}) > 1:
        return Value(source)
    columns = zip(*(layout.pieces for layout in layouts))
    pieces = tuple(Piece(join("concat", [p.source for p in column]), column[0].size) for column in columns)
    return Value(source, Layout(layouts[0].axis, pieces, any(layout.mixed for layout in layouts)))


def pointwise(
    kind: str,
    tensors: Sequence[torch.Tensor],
    values: Sequence[Value],
    out: torch.Tensor,
    mixes: int | None,
    join: Join,
) -> Value:
    """The value of a pointwise operation or norm: each piece of the layout is combined with the other operands.

    ``mixes`` is the first axis over which a norm computes statistics, None if the operation is not a norm.
    """
    source = join(kind, [value.source for value in values])
    first = next((i for i, v in enumerate(values) if v.layout is not None and tensors[i].shape == out.shape), None)
    if first is None:
        return Value(source)
    layout = values[first].layout
    assert layout is not None
    mixed = layout.mixed or (mixes is not None and layout.axis >= mixes)
    sources = [[piece.source] for piece in layout.pieces]
    for i, value in enumerate(values):
        if i == first or value.source is None:
            continue
        other = value.layout
        if other is not None and (other.axis, other.sizes) == (layout.axis, layout.sizes):
            for found, piece in zip(sources, other.pieces):
                found.append(piece.source)
            mixed |= other.mixed
        elif value.source == values[first].source:  # its own statistics, as in a root-mean-square norm
            mixed = True
        else:
            for found in sources:
                found.append(value.source)
    pieces = tuple(Piece(join(kind, found), piece.size) for found, piece in zip(sources, layout.pieces))
    return Value(source, Layout(layout.axis, pieces, mixed))


def attended(query: torch.Tensor, value: Value, keys: list[int], values: list[int], join: Join) -> Value:
    """The value of attention: product of queries and keys, then product with the values.

    Each output row depends on one query, so in joint attention the image rows of the output come from image queries.
    """

    def product(source: int | None) -> int | None:
        return join("product", [join("product", [source, *keys]), *values])

    layout = value.layout
    if layout is None or layout.axis != query.ndim - 2:
        return Value(product(value.source))
    pieces = tuple(Piece(product(piece.source), piece.size) for piece in layout.pieces)
    return Value(product(value.source), replace(layout, pieces=pieces))


def carried(name: str, args: Sequence[Any], value: Value, out: torch.Tensor, join: Join) -> Value:
    """The value of an output of operation ``name``, whose only tensor input is ``args[0]``, with a layout."""
    layout, tensor = value.layout, args[0]
    assert layout is not None
    if name in _COPIES and out.shape == tensor.shape:
        return value
    axis: int | None = None
    if name in _VIEWS:
        axis = _axis_in_view(tensor.shape, layout.axis, out.shape)
    elif name.startswith(_RESAMPLING):
        axis = layout.axis if out.ndim == tensor.ndim else None
    elif name == "expand":
        axis = layout.axis + out.ndim - tensor.ndim
    elif name in ("transpose", "swapaxes"):
        swap = [d % tensor.ndim for d in args[1:3]]
        axis = swap[1 - swap.index(layout.axis)] if layout.axis in swap else layout.axis
    elif name == "t":
        axis = out.ndim - 1 - layout.axis
    elif name == "permute":
        axis = [d % tensor.ndim for d in args[1]].index(layout.axis)
    elif name in ("select", "unbind"):
        dim = (args[1] if len(args) > 1 else 0) % tensor.ndim
        if dim != layout.axis:
            axis = layout.axis - (dim < layout.axis)
    if axis is None or out.shape[axis] != tensor.shape[layout.axis]:
        return Value(value.source)
    return replace(value, layout=replace(layout, axis=axis))


def sliced(value: Value, start: int, stop: int, join: Join) -> Value:
    """The value of positions ``start`` to ``stop`` on the layout's axis: of the operands there alone, unless mixed."""
    layout = value.layout
    assert layout is not None
    pieces, low = [], 0
    for piece in layout.pieces:
        size = min(stop, low + piece.size) - max(start, low)
        if size > 0:
            pieces.append(Piece(piece.source, size))
        low += piece.size
    source = value.source if layout.mixed else join("concat", [piece.source for piece in pieces])
    return Value(source, replace(layout, pieces=tuple(pieces)) if len(pieces) > 1 else None)


def keeps_positions(func: Any, name: str) -> bool:
    """Whether every output position depends on the same input position only (norms: apart from their statistics)."""
    return torch.Tag.pointwise in func.tags or name in _NORMS


def normalizes(name: str, args: Sequence[Any]) -> int | None:
    """The first axis over which a norm computes statistics; None if the operation is not a norm."""
    if name not in _NORMS:
        return None
    shape = args[1] if len(args) > 1 else None
    return args[0].ndim - len(shape) if isinstance(shape, (list, tuple)) else 0


def slices(name: str, args: Sequence[Any], axis: int) -> list[tuple[int, int]] | None:
    """Start and stop of each output along ``axis`` if the operation slices or splits that axis, else None."""
    tensor = args[0]
    size = tensor.shape[axis]

    def cuts(position: int) -> bool:
        dim = args[position] if len(args) > position else 0
        return bool(dim % tensor.ndim == axis)

    if name == "slice" and cuts(1) and (args[4] if len(args) > 4 else 1) == 1:
        start = args[2] if len(args) > 2 and args[2] is not None else 0
        stop = args[3] if len(args) > 3 and args[3] is not None else size
        return [(_clamp(start, size), _clamp(stop, size))]
    if name in ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes") and cuts(2):
        each = args[1]
        sizes = each if isinstance(each, (list, tuple)) else [min(each, size - i) for i in range(0, size, each)]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [(end - length, end) for end, length in zip(ends, sizes)]
    if name == "select" and cuts(1):
        return [(args[2] % size, args[2] % size + 1)]
    if name == "unbind" and cuts(1):
        return [(i, i + 1) for i in range(size)]
    return None


def _clamp(index: int, size: int) -> int:
    return min(max(index + size if index < 0 else index, 0), size)


def _axis_in_view(old: Sequence[int], axis: int, new: Sequence[int]) -> int | None:
    """The new index of ``axis`` after a reshape, None if the reshape splits or merges it."""
    before, size = math.prod(old[:axis]), old[axis]
    for i, length in enumerate(new):
        if length == size and math.prod(new[:i]) == before:
            return i
    return None
