"""The blocks that are scored as one: groups of weight layers with the node that sees them all.

A graph network's embedding of a node after k hops depends on the node's ancestors at most k edges away, and on nothing
else. So a group of layers is scored at its *root*: the node with the smallest k whose k-hop ancestors hold the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qua2sedimo.denoisers.graph import Graph
from qua2sedimo.denoisers.layers import WeightLayer

#: Operations that hold a block together: what else lies in their module and has no block of its own belongs to them.
_FAMILIES = {"Res In": "ResNet", "Res Out": "ResNet", "Res Skip": "ResNet"}
_ALONE = {
    "Patchify": "patch embedding", "Conv In": "input", "Conv Out": "output", "Out": "output", "AdaLN": "modulation",
}  # fmt: skip
_GUESTS = frozenset({"Gate", "Depthwise", "Conv", "Linear", "t-Embed"})

_Group = tuple[str, str]  # kind, module


@dataclass(frozen=True)
class Subgraph:
    """Layers that are scored together: at node ``root`` of the graph after ``hops`` hops.

    ``name`` is the module that holds them, with a word more where a module holds several; ``layers`` are unit names in
    the order of the data.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    root: int
    hops: int


def subgraphs(graph: Graph, max_hops: int = 4) -> list[Subgraph]:
    """Every weight layer in exactly one block, in the order of the data.

    Blocks are found from operation types, the modules that hold the layers, and the edges: an embedder with the one
    modulation projection beside it; self-attention's q, k, v, out (one block a stream where streams attend jointly);
    cross-attention's q, k and its v, out; a feed-forward; a ResNet block with its time projection, shortcut and skip
    parts; everything else alone, parts of one layer together. A group with no node that sees it all within ``max_hops``
    is divided.
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
    """Nodes at which blocks are scored after 0, 1, …, ``hops`` hops, each once, in order."""
    blocks = list(blocks)
    return [sorted({block.root for block in blocks if block.hops == k}) for k in range(hops + 1)]


def _groups(graph: Graph) -> dict[_Group, list[str]]:
    """Layers by kind and module; keys are distinct in their module text, so that it can name them."""
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
    """The block that a layer's operation puts it in, None if it is to be decided by where it lies."""
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
    """The module that holds a layer, places in a Sequential left off: ``a.to_out.0`` → ``a``; itself at the top."""
    return re.sub(r"(\.\d+)*$", "", module).rpartition(".")[0] or module


def _feed_forward_module(layer: WeightLayer, layers: Sequence[WeightLayer]) -> str:
    """The smallest module with both halves of a feed-forward; the layer itself if there is none in its block."""
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
    """An embedder of the timestep and the only modulation projection of its place are one block.

    An embedder shared by copies has no one place.
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
    """Where an attention has several queries, layers go to the query that reads what they read or that they follow."""
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
    """The same groups with their kind added to the module where the module alone would not be unique."""
    modules = [module for _, module in groups]
    result = {}
    for (kind, module), layers in groups.items():
        extra = re.sub(r"^(cross-attention|joint attention,) ", "", kind)
        result[kind, module if modules.count(module) == 1 else f"{module} {extra}"] = layers
    return result


def _common(modules: Sequence[str]) -> str:
    """The longest dotted path that all lie in."""
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
    """Pieces with root and hops: the group if some node sees it all, else what one node sees most of, and so on."""
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
    """Nodes at most ``hops`` edges behind ``start``, with their distance."""
    found, frontier = {start: 0}, [start]
    for distance in range(1, hops + 1):
        frontier = list(dict.fromkeys(v for u in frontier for v in readers[u] if v not in found))
        found.update(dict.fromkeys(frontier, distance))
    return found
