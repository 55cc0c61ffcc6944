"""Reduce the tracer's draft to graph nodes: split parts, merge modulations, drop dead ends and input nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import TopologicalSorter

from qua2sedimo.denoisers.graph import Node
from qua2sedimo.denoisers.tracer import Draft, ancestors

#: Ranges of input channels of each split layer's parts.
Spans = dict[str, list[tuple[int, int]]]


def reduced(nodes: list[Draft], ends: Iterable[int], parts: bool) -> tuple[list[Node], Spans]:
    """The nodes that ``ends`` depend on, in topological order, and the spans of the layers that were split."""
    spans: Spans = {}
    if parts:
        nodes, spans, ends = _cut(nodes, ends)
    drafts = _reaching(nodes, ends)
    return _without_inputs(_merged_modulations(drafts)), spans


def _cut(nodes: list[Draft], ends: Iterable[int]) -> tuple[list[Draft], Spans, set[int]]:
    """Replace each layer whose input channels are a concatenation by one part per operand and a node that adds them."""
    found = [_pieces(node) if node.kind == "layer" else [] for node in nodes]
    position, total = {}, 0
    for i, pieces in enumerate(found):  # position of the node that others read: the last of each group
        total += 1 + len(pieces)
        position[i] = total - 1
    result: list[Draft] = []
    spans: Spans = {}
    for node, pieces in zip(nodes, found):
        low = 0
        for sources, size in pieces:
            spans.setdefault(node.name, []).append((low, low + size))
            inputs = tuple(sorted({position[s] for s in sources}))
            result.append(Draft(f"{node.name}[{low}:{low + size}]", "layer", inputs))
            low += size
        if pieces:
            first = len(result) - len(pieces)
            result.append(Draft(f"add {node.name}", "add", tuple(range(first, len(result)))))
        else:
            result.append(Draft(node.name, node.kind, tuple(sorted({position[s] for s in node.inputs}))))
    return result, spans, {position[end] for end in ends}


def _pieces(node: Draft) -> list[tuple[set[int], int]]:
    """(sources, channels) of each part of a layer; empty if the layer is not split.

    All calls of the layer must agree on the boundaries. Adjacent pieces with equal sources are one part; a constant
    piece is merged into its neighbour.
    """
    calls = [pieces for pieces in node.cuts if pieces is not None]
    if not calls or len(calls) < len(node.cuts) or len({tuple(p.size for p in pieces) for pieces in calls}) > 1:
        return []
    merged: list[tuple[set[int], int]] = []
    for column in zip(*calls):
        sources = {p.source for p in column if p.source is not None}
        size = column[0].size
        if merged and (not sources or not merged[-1][0] or sources == merged[-1][0]):
            merged[-1] = (merged[-1][0] | sources, merged[-1][1] + size)
        else:
            merged.append((sources, size))
    return merged if len(merged) > 1 else []


def _kept(nodes: list[Draft], keep: Iterable[int], moved: Mapping[int, Sequence[int]] | None = None) -> list[Draft]:
    """The nodes in ``keep`` with renumbered inputs; a dropped node is replaced by its nodes in ``moved``."""
    order = sorted(keep)
    position = {old: new for new, old in enumerate(order)}
    result = []
    for old in order:
        inputs: set[int] = set()
        for source in nodes[old].inputs:
            inputs |= {position[s] for s in (moved or {}).get(source, (source,)) if s in position}
        result.append(Draft(nodes[old].name, nodes[old].kind, tuple(sorted(inputs)), nodes[old].sees))
    return result


def _reaching(nodes: list[Draft], ends: Iterable[int]) -> list[Draft]:
    """What ``ends`` depend on, in topological order: a layer called twice may read nodes created after it."""
    alive = ancestors(nodes, ends)
    order = list(TopologicalSorter({i: nodes[i].inputs for i in sorted(alive)}).static_order())
    if all(source < i for i in alive for source in nodes[i].inputs):
        order = sorted(alive)  # then keep the order of execution
    position = {old: new for new, old in enumerate(order)}
    return [
        Draft(nodes[i].name, nodes[i].kind, tuple(sorted(position[s] for s in nodes[i].inputs)), nodes[i].sees)
        for i in order
    ]


def _merged_modulations(nodes: list[Draft]) -> list[Draft]:
    """Merge the two nodes of x·(1 + scale) + shift into one *modulate* node if scale and shift have one source."""
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
                nodes[i] = Draft(node.name.replace("add", "modulate"), "modulate", node.inputs)
    return _kept(nodes, set(range(len(nodes))) - set(moved), moved)


def _without_inputs(nodes: list[Draft]) -> list[Node]:
    """Drop input nodes, recording on every node which inputs it depends on, and combine nodes left with one source."""
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
