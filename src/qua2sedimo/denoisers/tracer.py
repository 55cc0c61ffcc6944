"""The dispatch mode that records every tensor operation of a forward pass as a draft of the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from qua2sedimo.denoisers import layouts
from qua2sedimo.denoisers.layouts import Piece, Value

_KINDS = {
    "add": "add", "sub": "add", "rsub": "add", "addcmul": "add", "lerp": "add",
    "mul": "multiply", "div": "multiply",
    "mm": "product", "bmm": "product", "addmm": "product", "baddbmm": "product", "matmul": "product",
    "cat": "concat", "stack": "concat",
}  # fmt: skip


@dataclass
class Draft:
    """A node under construction; ``inputs`` are indices into the current list of drafts.

    ``cuts`` has one entry per call of a layer: the pieces of its concatenated input channels, or None.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    sees: tuple[str, ...] = ()
    cuts: list[tuple[Piece, ...] | None] = field(default_factory=list)


class Tracer(TorchDispatchMode):
    """While active, records in ``nodes`` how tensors depend on the inputs registered with :meth:`mark_input`.

    ``positions`` is the number of tokens or pixels that each layer computed, over all its calls.
    """

    supports_higher_order_operators = True  # flex_attention is one; trace it as a single operation

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Draft] = []
        self._values: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._inside = 0
        self.positions: dict[str, int] = {}
        self._calls: dict[str, int] = {}

    def mark_input(self, name: str, tensor: torch.Tensor) -> None:
        self._values[tensor] = Value(self._new(name, "input", ()))

    def value(self, tensor: torch.Tensor) -> Value:
        return self._values.get(tensor) or Value()

    def sources_of(self, value: Any) -> list[int]:
        found = {self.value(t).source for t in _tensors(value)}
        return sorted(source for source in found if source is not None)

    def hook(self, name: str, module: nn.Module) -> Iterable[torch.utils.hooks.RemovableHandle]:
        """Record every call of ``module`` as a call of the layer ``name``."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._inside == 0:
                inputs = self.sources_of((args, kwargs))
                pieces = self._channels((*args, *kwargs.values()), module)
                if name in self._calls:  # called again: the same weights on other inputs
                    self._read_again(self._calls[name], inputs, pieces)
                else:
                    self._calls[name] = self._new(name, "layer", inputs)
                    self.nodes[-1].cuts.append(pieces)
            self._inside += 1

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._inside -= 1
            if self._inside == 0:
                weight = module.weight
                assert isinstance(weight, torch.Tensor)
                channels = int(weight.shape[0])
                made = sum(t.numel() for t in _tensors(output)) // channels
                self.positions[name] = self.positions.get(name, 0) + made
                for tensor in _tensors(output):
                    self._values[tensor] = Value(self._calls[name])

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def _channels(self, arguments: Sequence[Any], module: nn.Module) -> tuple[Piece, ...] | None:
        """The pieces of the module's input channels if they are a concatenation, else None."""
        tensors = _tensors(arguments)
        layout = self.value(tensors[0]).layout if len(tensors) == 1 else None
        if layout is None or getattr(module, "groups", 1) != 1:
            return None
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        axis = tensors[0].ndim - 1 - (weight.ndim - 2)  # Linear: the last; a convolution: before the spatial ones
        return layout.pieces if layout.axis == axis and sum(layout.sizes) == weight.shape[1] else None

    def _read_again(self, node: int, inputs: Iterable[int], pieces: tuple[Piece, ...] | None) -> None:
        """Add inputs to a layer that is called again, except those that depend on the layer itself."""
        own = {i for i in inputs if i == node or node in ancestors(self.nodes, [i])}
        self.nodes[node].inputs = tuple(sorted({*self.nodes[node].inputs, *inputs} - own))
        if pieces is not None:
            pieces = tuple(
                Piece(None, p.size) if p.source is not None and node in ancestors(self.nodes, [p.source]) else p
                for p in pieces
            )
        self.nodes[node].cuts.append(pieces)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[-1].split(".")[0].strip("_")
        result = func(*_with_known_indices(name, args), **(kwargs or {}))
        if self._inside:
            return result
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        values = self._follow(func, name, args, kwargs, outputs)
        for tensor, value in zip(outputs, values):
            base = tensor._base
            if base is not None and _writes(func):  # an in-place write through a view also changes its base
                self._values[base] = Value(self._join("combine", [self.value(base).source, value.source]))
            self._values[tensor] = value
        return result

    def _follow(self, func: Any, name: str, args: Any, kwargs: Any, outputs: list[torch.Tensor]) -> list[Value]:
        """The value (source node and layout) of each output of an operation."""
        kind = _KINDS.get(name, "combine")
        if ("scaled_dot_product" in name or name == "flex_attention") and len(args) >= 3:
            keys = self.sources_of((args[1], args[3:], kwargs))
            first = layouts.attended(args[0], self.value(args[0]), keys, self.sources_of(args[2]), self._join)
            return [first, *[Value(first.source)] * (len(outputs) - 1)]
        tensors = _tensors((args, kwargs))
        values = [self.value(t) for t in tensors]
        if name in ("cat", "stack"):
            dim = (kwargs or {}).get("dim", args[1] if len(args) > 1 else 0)
            follow = layouts.concatenated if name == "cat" else layouts.stacked
            return [follow(args[0], [self.value(t) for t in args[0]], dim, self._join)]
        if not any(v.layout for v in values) or not outputs:
            return [Value(self._join(kind, [v.source for v in values]))] * len(outputs)
        if layouts.keeps_positions(func, name):
            mixes = layouts.normalizes(name, args)
            first = layouts.pointwise(kind, tensors, values, outputs[0], mixes, self._join)
            return [first, *[Value(first.source)] * (len(outputs) - 1)]
        if len(tensors) == 1 and tensors[0] is args[0] and (layout := values[0].layout) is not None:
            cut = layouts.slices(name, args, layout.axis)
            if cut is not None:
                return [self._dropped(name, layouts.sliced(values[0], *span, self._join)) for span in cut]
            return [layouts.carried(name, args, values[0], out, self._join) for out in outputs]
        return [Value(self._join(kind, [v.source for v in values]))] * len(outputs)

    @staticmethod
    def _dropped(name: str, value: Value) -> Value:
        return Value(value.source) if name in ("select", "unbind") else value  # these operations remove the axis

    def _new(self, name: str, kind: str, inputs: Iterable[int]) -> int:
        self.nodes.append(Draft(name, kind, tuple(sorted(set(inputs)))))
        return len(self.nodes) - 1

    def _join(self, kind: str, sources: Iterable[int | None]) -> int | None:
        """A combine node of these sources; the source itself if there is only one; None if there is none."""
        distinct = sorted({source for source in sources if source is not None})
        if len(distinct) <= 1:
            return distinct[0] if distinct else None
        return self._new(f"{kind} {len(self.nodes)}", kind, distinct)


def _writes(func: Any) -> bool:
    """Whether the operation writes to its arguments; higher-order operations have no schema and never do."""
    return bool(getattr(getattr(func, "_schema", None), "is_mutable", False))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]


def _with_known_indices(name: str, args: Any) -> Any:
    """Convert real boolean masks to integer indices: a fake tensor cannot be indexed with a mask."""
    if name not in ("index", "index_put") or not isinstance(args[0], FakeTensor):
        return args
    known: list[torch.Tensor | None] = []
    for index in args[1]:
        mask = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        known += index.nonzero(as_tuple=True) if mask else [index]
    return (args[0], known, *args[2:])


def ancestors(nodes: Sequence[Draft], ends: Iterable[int]) -> set[int]:
    """All nodes that ``ends`` depend on, and the ends themselves."""
    found, stack = set(ends), list(ends)
    while stack:
        for source in nodes[stack.pop()].inputs:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found
