"""Several denoisers of one pipeline as one: their layers are named COMPONENT.LAYER."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers.graph import Graph, Node
from qua2sedimo.denoisers.layers import WeightLayer
from qua2sedimo.formats.tensorfiles import Checkpoint


class JoinedDenoisers(nn.Module):
    """Holds the denoisers as submodules named by their component; it is never called itself."""

    def __init__(self, denoisers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for component, denoiser in denoisers.items():
            self.add_module(component, denoiser)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not for use: raises NotImplementedError."""
        raise NotImplementedError("the pipeline calls each denoiser itself")


class JoinedCheckpoint(Checkpoint):
    """The checkpoints of several denoisers, read by COMPONENT.NAME."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints

    def __contains__(self, name: str) -> bool:
        component, _, own = name.partition(".")
        return component in self._checkpoints and own in self._checkpoints[component]

    def __call__(self, name: str) -> torch.Tensor:
        """A copy of the tensor."""
        component, _, own = name.partition(".")
        return self._checkpoints[component](own)


def joined_graph(graphs: Mapping[str, Graph]) -> Graph:
    """One graph of several denoisers, side by side: no data flows between them but the noisy sample, in time."""
    nodes: list[Node] = []
    layers: dict[str, WeightLayer] = {}
    for component, graph in graphs.items():
        first = len(nodes)
        nodes += [
            replace(n, name=f"{component}.{n.name}", inputs=tuple(first + i for i in n.inputs)) for n in graph.nodes
        ]
        layers |= {f"{component}.{name}": _named(component, layer) for name, layer in graph.layers.items()}
    names = " + ".join(graph.denoiser for graph in graphs.values())
    return Graph(
        names,
        tuple(nodes),
        layers,
        bypassed=tuple(f"{c}.{name}" for c, graph in graphs.items() for name in graph.bypassed),
        left_alone=tuple(f"{c}.{name}" for c, graph in graphs.items() for name in graph.left_alone),
    )


def part_of(component: str, graph: Graph) -> Graph:
    """The graph of one denoiser, as it was before it was joined."""
    start = f"{component}."
    own = [i for i, node in enumerate(graph.nodes) if node.name.startswith(start)]
    place = {i: position for position, i in enumerate(own)}
    nodes = tuple(
        replace(graph.nodes[i], name=graph.nodes[i].name.removeprefix(start),
                inputs=tuple(place[j] for j in graph.nodes[i].inputs))
        for i in own
    )  # fmt: skip
    layers = {
        name.removeprefix(start): _unnamed(start, layer)
        for name, layer in graph.layers.items()
        if name.startswith(start)
    }
    return Graph(graph.denoiser, nodes, layers)


def _named(component: str, layer: WeightLayer) -> WeightLayer:
    return replace(
        layer, name=f"{component}.{layer.name}", module=f"{component}.{layer.module}",
        block=f"{component}.{layer.block}", copies=tuple(f"{component}.{copy}" for copy in layer.copies),
    )  # fmt: skip


def _unnamed(start: str, layer: WeightLayer) -> WeightLayer:
    return replace(
        layer, name=layer.name.removeprefix(start), module=layer.module.removeprefix(start),
        block=layer.block.removeprefix(start), copies=tuple(copy.removeprefix(start) for copy in layer.copies),
    )  # fmt: skip
