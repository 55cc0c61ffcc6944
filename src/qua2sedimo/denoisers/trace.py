"""From one forward pass to the graph: follow which values every operation reads.

A dispatch mode sees each tensor operation of a real forward (on real, meta or fake tensors alike) and carries for
every tensor the node it comes from. Calls of weight layers become layer nodes; an operation that reads values
from two or more nodes becomes a combine node; everything else passes its source on. No per-model code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from qua2sedimo.denoisers.graph import Graph, Node
from qua2sedimo.denoisers.layers import weight_layers, weight_modules
from qua2sedimo.errors import Qua2SeDiMoError

_KINDS = {
    "add": "add", "sub": "add", "rsub": "add", "addcmul": "add", "lerp": "add",
    "mul": "multiply", "div": "multiply",
    "mm": "product", "bmm": "product", "addmm": "product", "baddbmm": "product", "matmul": "product",
    "cat": "concat", "stack": "concat",
}  # fmt: skip


def trace(denoiser: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Graph:
    """Run ``denoiser(*args, **kwargs)`` once and return its graph.

    Raises :class:`Qua2SeDiMoError` if the forward fails on these inputs.
    """
    layers = weight_layers(denoiser)
    modules = weight_modules(denoiser)
    tracer = _Tracer()
    bound = inspect.signature(denoiser.forward).bind(*args, **dict(kwargs or {}))
    for name, value in bound.arguments.items():
        tensors = [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
        if tensors:
            tracer.mark(tensors, tracer.new(name, "input", ()))
    hooks = [hook for name, module in modules.items() for hook in tracer.hook(name, module)]
    training = denoiser.training
    denoiser.eval()
    try:
        with torch.no_grad(), tracer:
            output = denoiser(*args, **dict(kwargs or {}))
    except (RuntimeError, TypeError, ValueError) as error:
        raise Qua2SeDiMoError(f"{type(denoiser).__name__}: the forward pass failed while tracing: {error}") from error
    finally:
        denoiser.train(training)
        for hook in hooks:
            hook.remove()
    ends = {tracer.sources.get(t) for t in tree_leaves(_plain(output)) if isinstance(t, torch.Tensor)}
    drafts = _reaching_output(tracer.nodes, {end for end in ends if end is not None})
    nodes = _without_inputs(_merged_modulations(drafts))
    found = {node.name for node in nodes if node.kind == "layer"}
    return Graph(
        denoiser=type(denoiser).__name__,
        nodes=tuple(nodes),
        layers={name: layer for name, layer in layers.items() if name in found},
        bypassed=tuple(name for name in layers if name not in found),
    )


@dataclass
class _Draft:
    """A node while it is being built; ``inputs`` refer to positions in the current list."""

    name: str
    kind: str
    inputs: tuple[int, ...]
    sees: tuple[str, ...] = field(default=())


class _Tracer(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[_Draft] = []
        self.sources: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._inside = 0
        self._calls: dict[str, int] = {}

    def new(self, name: str, kind: str, inputs: Iterable[int]) -> int:
        self.nodes.append(_Draft(name, kind, tuple(sorted(set(inputs)))))
        return len(self.nodes) - 1

    def mark(self, tensors: Iterable[torch.Tensor], node: int) -> None:
        for tensor in tensors:
            self.sources[tensor] = node
            if tensor._base is not None:  # an in-place write through a view changes the viewed tensor too
                self.sources[tensor._base] = node

    def sources_of(self, value: Any) -> list[int]:
        found = [self.sources.get(t) for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
        return sorted({source for source in found if source is not None})

    def hook(self, name: str, module: nn.Module) -> Iterable[torch.utils.hooks.RemovableHandle]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            if self._inside == 0:
                inputs = self.sources_of((args, kwargs))
                if name in self._calls:  # called again: the same weights read more data
                    self._read_again(self._calls[name], inputs)
                else:
                    self._calls[name] = self.new(name, "layer", inputs)
            self._inside += 1

        def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._inside -= 1
            if self._inside == 0:
                self.mark((t for t in tree_leaves(output) if isinstance(t, torch.Tensor)), self._calls[name])

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def _read_again(self, node: int, inputs: Iterable[int]) -> None:
        """Add inputs to a layer that is called more than once, unless they already depend on it."""
        fresh = [i for i in inputs if i != node and node not in _ancestors(self.nodes, [i])]
        self.nodes[node].inputs = tuple(sorted({*self.nodes[node].inputs, *fresh}))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._inside:
            return result
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        name = func._schema.name.split("::")[-1].rstrip("_").lstrip("_")
        if "scaled_dot_product" in name and len(args) >= 3:
            attention = self._join("product", self.sources_of((args[:2], args[3:], kwargs)))
            source = self._join("product", [*attention, *self.sources_of(args[2])])
        else:
            source = self._join(_KINDS.get(name, "combine"), self.sources_of((args, kwargs)))
        if source:
            self.mark(outputs, source[0])
        return result

    def _join(self, kind: str, sources: Sequence[int]) -> list[int]:
        distinct = sorted(set(sources))
        if len(distinct) <= 1:
            return distinct
        return [self.new(f"{kind} {len(self.nodes)}", kind, distinct)]


def _plain(output: Any) -> Any:
    return tuple(output.values()) if isinstance(output, Mapping) else output


def _kept(nodes: list[_Draft], keep: Iterable[int], moved: Mapping[int, Sequence[int]] | None = None) -> list[_Draft]:
    """The nodes of ``keep`` with renumbered inputs; a dropped node in ``moved`` is replaced by others there."""
    order = sorted(keep)
    position = {old: new for new, old in enumerate(order)}
    result = []
    for old in order:
        inputs: set[int] = set()
        for source in nodes[old].inputs:
            inputs |= {position[s] for s in (moved or {}).get(source, (source,)) if s in position}
        result.append(_Draft(nodes[old].name, nodes[old].kind, tuple(sorted(inputs)), nodes[old].sees))
    return result


def _ancestors(nodes: list[_Draft], ends: Iterable[int]) -> set[int]:
    """The nodes from which some end can be reached, the ends included."""
    found, stack = set(ends), list(ends)
    while stack:
        for source in nodes[stack.pop()].inputs:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found


def _reaching_output(nodes: list[_Draft], ends: Iterable[int]) -> list[_Draft]:
    """What the output depends on, in topological order (a layer called twice may read nodes made after it)."""
    alive = _ancestors(nodes, ends)
    order = list(TopologicalSorter({i: nodes[i].inputs for i in sorted(alive)}).static_order())
    if all(source < i for i in alive for source in nodes[i].inputs):
        order = sorted(alive)  # the order of execution reads best
    position = {old: new for new, old in enumerate(order)}
    return [
        _Draft(nodes[i].name, nodes[i].kind, tuple(sorted(position[s] for s in nodes[i].inputs)), nodes[i].sees)
        for i in order
    ]


def _merged_modulations(nodes: list[_Draft]) -> list[_Draft]:
    """x·(1 + scale) + shift with scale and shift of one source is one node, *modulate*, not two."""
    readers: dict[int, int] = {}
    for node in nodes:
        for source in node.inputs:
            readers[source] = readers.get(source, 0) + 1
    moved: dict[int, Sequence[int]] = {}
    for i, node in enumerate(nodes):
        for source in node.inputs if node.kind == "add" and len(node.inputs) == 2 else ():
            (other,) = set(node.inputs) - {source}
            first = nodes[source]
            if first.kind == "multiply" and readers[source] == 1 and other in first.inputs:
                moved[source] = first.inputs
                nodes[i] = _Draft(node.name.replace("add", "modulate"), "modulate", node.inputs)
    return _kept(nodes, set(range(len(nodes))) - set(moved), moved)


def _without_inputs(nodes: list[_Draft]) -> list[Node]:
    """Drop the input nodes, noting on every other node which inputs it sees, and combines left with one source."""
    sees: list[set[str]] = []
    moved: dict[int, Sequence[int]] = {}
    for i, node in enumerate(nodes):
        sees.append({node.name} if node.kind == "input" else set().union(*(sees[s] for s in node.inputs)))
        if node.kind == "input":
            moved[i] = ()
        elif node.kind != "layer":
            sources = sorted({s for source in node.inputs for s in moved.get(source, (source,))})
            if len(sources) <= 1:
                moved[i] = sources
    kept = [i for i in range(len(nodes)) if i not in moved]
    drafts = _kept(nodes, kept, moved)
    return [Node(d.name, d.kind, d.inputs, tuple(sorted(sees[i]))) for i, d in zip(kept, drafts)]
