"""Blocks that are scored together: groups of weight layers, each with a root node that depends on all of them.

In a graph network, the embedding of a node after k hops depends only on ancestors at most k edges away. A group of
layers is therefore scored at its *root*: the node with the smallest k whose k-hop ancestors include the whole group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qua2sedimo.denoisers.graph import Graph
from qua2sedimo.denoisers.layers import WeightLayer

#: Operations that define a ResNet block; other layers in the same module join the block.
_FAMILIES = {"Res In": "ResNet", "Res Out": "ResNet", "Res Skip": "ResNet"}
_ALONE = {
    "Patchify": "patch embedding", "Conv In": "input", "Conv Out": "output", "Out": "output", "AdaLN": "modulation",
}  # fmt: skip
_GUESTS = frozenset({"Gate", "Depthwise", "Conv", "Linear", "t-Embed"})

_Group = tuple[str, str]  # kind, module


@dataclass(frozen=True)
class Subgraph:
    """Layers that are scored together, at node ``root`` of the graph after ``hops`` hops.

    ``name`` is the module that contains them, with a suffix if one module contains several blocks; ``layers`` are unit
    names in data-flow order.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    root: int
    hops: int


def subgraphs(graph: Graph, max_hops: int = 4) -> list[Subgraph]:
    """Partition the weight layers into blocks, in data-flow order.

    Blocks follow from operation types, enclosing modules and edges: a timestep embedder with the only modulation
    projection next to it; q, k, v, out of self-attention (one block per stream of joint attention); q, k and v, out of
    cross-attention; a feed-forward; a ResNet block with its time projection, shortcut and skip parts; every other layer
    alone, with all its parts. A group is divided if no node within ``max_hops`` depends on all of it.
    """
    found: list[Subgraph] = []
    readers = _readers(graph)
    for (kind, module), layers in _groups(graph).items():
        pieces = list(_pieces(graph, readers, layers, max_hops))
        for number, (members, root, hops) in enumerate(pieces):
            name = module if len(pieces) == 1 else f"{module} {number + 1}"
            found.append(Subgraph(name, kind, members, root, hops))
    return sorted(found, key=lambda s: min(graph.index[layer] for layer in s.layers))


def roots(blocks: Iterable[Subgraph], hops: int) -> list[list[int]]:
    """For each number of hops from 0 to ``hops``, the sorted root nodes of the blocks scored after that many hops."""
    blocks = list(blocks)
    return [sorted({block.root for block in blocks if block.hops == k}) for k in range(hops + 1)]


def _groups(graph: Graph) -> dict[_Group, list[str]]:
    """Layers grouped by (kind, module name); no two keys have the same module name."""
    layers = list(graph.layers.values())
    keys: dict[str, _Group] = {}
    for layer in layers:
        key = _family(layer, layers)
        if key is not None:
            keys[layer.name] = key
    homes = {key[1]: key for key in keys.values() if key[0] in ("ResNet", "feed-forward", "self-attention")}
    for layer in layers:
        inside = [m for m in homes if layer.module.startswith(m + ".")] if layer.operation in _GUESTS else []
        if inside:
            keys[layer.name] = homes[max(inside, key=len)]
        elif layer.name not in keys:
            keys[layer.name] = (_kind(layer.operation), layer.module)
    _join_modulations(layers, keys)
    keys |= _streams(graph, keys)
    groups: dict[_Group, list[str]] = {}
    for name in sorted(keys, key=graph.index.__getitem__):
        groups.setdefault(keys[name], []).append(name)
    return _named(groups)


def _family(layer: WeightLayer, layers: Sequence[WeightLayer]) -> _Group | None:
    """The block that follows from a layer's operation type, None if the enclosing module decides."""
    operation, home = layer.operation, _parent(layer.module)
    attention, _, role = operation.partition("-")
    if attention == "SA":
        return "self-attention", home
    if attention == "CA":
        fused = any(x.operation in ("CA-KV", "CA-QKV") and _parent(x.module) == home for x in layers)
        return "cross-attention" + ("" if fused else " q, k" if role in "QK" else " v, out"), home
    if operation in _FAMILIES:
        return _FAMILIES[operation], home
    if operation in ("FF 1", "FF 2"):
        return "feed-forward", _feed_forward_module(layer, layers)
    if operation in ("t-Embed", "c-Embed"):
        return "time embedding" if operation == "t-Embed" else "condition embedding", home
    return None


def _kind(operation: str) -> str:
    return _ALONE.get(operation, operation.lower() if operation[1:2].islower() else operation)


def _parent(module: str) -> str:
    """The module that contains a layer, ignoring Sequential indices: ``a.to_out.0`` → ``a``; itself if top-level."""
    return re.sub(r"(\.\d+)*$", "", module).rpartition(".")[0] or module


def _feed_forward_module(layer: WeightLayer, layers: Sequence[WeightLayer]) -> str:
    """The smallest module with both layers of a feed-forward; the layer itself if its block has no such module."""
    halves = [x for x in layers if x.operation in ("FF 1", "FF 2")]
    path = layer.module
    while "." in path:
        path = path.rpartition(".")[0]
        inside = [x for x in halves if x.module.startswith(path + ".")]
        if any(x.block != layer.block for x in inside):
            break
        if len({x.operation for x in inside}) == 2:
            return path
    return layer.module


def _join_modulations(layers: Iterable[WeightLayer], keys: dict[str, _Group]) -> None:
    """Merge a timestep embedder and the only modulation projection in its block into one group.

    Embedders with copies belong to several blocks and are not merged.
    """
    places: dict[str, list[WeightLayer]] = {}
    for layer in layers:
        if keys[layer.name][0] in ("time embedding", "modulation") and not layer.copies:
            places.setdefault(layer.block, []).append(layer)
    for members in places.values():
        projections = [x for x in members if keys[x.name][0] == "modulation"]
        embedders = {keys[x.name] for x in members if keys[x.name][0] == "time embedding"}
        if len(projections) == 1 and len(embedders) == 1:
            joint = ("time embedding", _common([x.module for x in members]))
            keys.update((x.name, joint) for x in members)


def _streams(graph: Graph, keys: dict[str, _Group]) -> dict[str, _Group]:
    """Assign the layers of joint attention to streams: projections by their input, output layers by their query."""
    found: dict[str, _Group] = {}
    for key in {key for key in keys.values() if key[0] == "self-attention"}:
        members = [name for name, k in keys.items() if k == key]
        sources = {name: graph.nodes[graph.index[name]].inputs for name in members}
        projections = [n for n in members if not graph.layers[n].operation.endswith("-Out")]
        streams = list(dict.fromkeys(sources[n] for n in projections))
        if len(streams) < 2:
            continue
        queries = {n: sources[n] for n in projections if graph.layers[n].operation in ("SA-Q", "SA-QKV")}
        for name in members:
            stream = sources[name]
            if name not in projections:
                behind = graph.reaching([graph.index[name]], 5)
                stream = next((s for n, s in queries.items() if graph.index[n] in behind), streams[0])
            number = streams.index(stream)
            found[name] = (f"joint attention, stream {number + 1}", key[1])
    return found


def _named(groups: dict[_Group, list[str]]) -> dict[_Group, list[str]]:
    """The same groups, with the kind appended to module names that would not be unique."""
    modules = [module for _, module in groups]
    result = {}
    for (kind, module), layers in groups.items():
        extra = re.sub(r"^(cross-attention|joint attention,) ", "", kind)
        result[kind, module if modules.count(module) == 1 else f"{module} {extra}"] = layers
    return result


def _common(modules: Sequence[str]) -> str:
    """The longest common module path."""
    parts = [m.split(".") for m in modules]
    shared = []
    for names in zip(*parts):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared) or modules[-1]


def _pieces(
    graph: Graph, readers: Sequence[Sequence[int]], layers: Sequence[str], max_hops: int
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """(layers, root, hops) of each piece: greedily, the node that depends on most of the remaining layers."""
    left = list(layers)
    while left:
        distance: dict[int, dict[str, int]] = {}
        for name in left:
            for node, hops in _following(readers, graph.index[name], max_hops).items():
                distance.setdefault(node, {})[name] = hops
        own = {graph.index[name] for name in left}
        root = min(distance, key=lambda v: (-len(distance[v]), max(distance[v].values()), v not in own, v))
        seen = distance[root]
        yield tuple(name for name in left if name in seen), root, max(seen.values())
        left = [name for name in left if name not in seen]


def _readers(graph: Graph) -> list[list[int]]:
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for source, target in graph.edges:
        readers[source].append(target)
    return readers


def _following(readers: Sequence[Sequence[int]], start: int, hops: int) -> dict[int, int]:
    """Descendants of ``start`` at most ``hops`` edges away, with their distances."""
    found, frontier = {start: 0}, [start]
    for distance in range(1, hops + 1):
        frontier = list(dict.fromkeys(v for u in frontier for v in readers[u] if v not in found))
        found.update(dict.fromkeys(frontier, distance))
    return found
