"""Tied layers: layers with equal weights and equal inputs, which are quantized as one unit.

Every block of DiT embeds the timestep with its own copy of the same MLP: 28 copies of the same weights. If weights are
available they are compared. If only the architecture is known, layers at the same position in every block that depend
on nothing but one number per sample (such as the timestep) are listed as candidates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import nn

from qua2sedimo.denoisers.graph import Graph, Node
from qua2sedimo.denoisers.layers import WeightLayer, weight_of

_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")


def tied(graph: Graph, modules: Mapping[str, nn.Module]) -> Graph:
    """Merge whole layers with equal weight, bias and inputs; the merged layers become ``copies`` of the first."""
    same, copies, positions = list(range(len(graph.nodes))), dict[str, list[str]](), dict[str, int]()
    rivals: dict[object, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        layer = graph.layers.get(node.name) if node.kind == "layer" else None
        if layer is None or layer.span is not None:
            continue
        module = modules[layer.module]
        geometry = tuple(str(getattr(module, name, None)) for name in _GEOMETRY)
        key = (layer.kind, layer.shape, geometry, _inputs(node, same), node.sees)
        others = rivals.setdefault(key, [])
        equal = next((j for j in others if _equal(modules[graph.nodes[j].name], module)), None)
        if equal is None:
            others.append(i)
        else:
            same[i] = equal
            first = graph.nodes[equal].name
            copies.setdefault(first, []).extend((layer.module, *layer.copies))
            positions[first] = positions.get(first, 0) + layer.positions
    kept = [i for i in range(len(graph.nodes)) if same[i] == i]
    position = {old: new for new, old in enumerate(kept)}
    nodes = [
        replace(graph.nodes[i], inputs=tuple(sorted(position[s] for s in _inputs(graph.nodes[i], same)))) for i in kept
    ]
    names = {node.name for node in nodes}
    layers = {
        name: replace(
            layer,
            copies=(*layer.copies, *copies.get(name, ())),
            positions=layer.positions + positions.get(name, 0),
        )
        for name, layer in graph.layers.items()
        if name in names
    }
    return replace(graph, nodes=tuple(nodes), layers=layers)


def tied_candidates(graph: Graph, denoiser: nn.Module, numbers: Set[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of modules that may have equal weights; ``numbers`` are the inputs with one number per sample."""
    same = list(range(len(graph.nodes)))
    groups: dict[object, list[int]] = {}
    members: set[int] = set()
    for i, node in enumerate(graph.nodes):
        layer = graph.layers.get(node.name) if node.kind == "layer" else None
        sources = _inputs(node, same)
        if layer is None or len(node.sees) != 1 or not set(node.sees) <= numbers or not members.issuperset(sources):
            continue
        place = re.match(r"(.*?)\.\d+\.(.*)", node.name)
        if place is not None:
            group = groups.setdefault((place[1], place[2], layer.shape, sources, node.sees), [])
            group.append(i)
            same[i] = group[0]
            members.add(group[0])
    return tuple(
        tuple(graph.nodes[i].name for i in group)
        for group in groups.values()
        if len(group) > 1 and len(group) == _repeats(denoiser, graph.layers[graph.nodes[group[0]].name])
    )


def _inputs(node: Node, same: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({same[source] for source in node.inputs}))


def _repeats(denoiser: nn.Module, layer: WeightLayer) -> int:
    """The length of the first module list on the layer's path."""
    path = re.split(r"\.\d+\.", layer.module, maxsplit=1)[0]
    return len(list(denoiser.get_submodule(path).children()))


def _equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.bias, other.bias
    if (first is None) != (second is None) or not torch.equal(weight_of(one), weight_of(other)):
        return False
    return first is None or (
        isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and torch.equal(first, second)
    )
