"""Which units read the same tensor, and so have one second moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers import Graph, WeightLayer
from qua2sedimo.statistics.calls import RecordedCall
from qua2sedimo.statistics.columns import input_of

#: A moment of more inputs is taken in equal blocks.
MOST_INPUTS = 4096


@dataclass(frozen=True)
class Source:
    """Units that read one tensor in the same way; ``inputs`` are n, ``sees`` the denoiser inputs it depends on."""

    units: tuple[str, ...]
    inputs: int
    sees: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first unit's name."""
        return self.units[0]

    @property
    def blocks(self) -> list[int]:
        """Sizes of the diagonal blocks of the moment: equal but for one, at most :data:`MOST_INPUTS`."""
        count = -(-self.inputs // MOST_INPUTS)
        cuts = [self.inputs * i // count for i in range(count + 1)]
        return [b - a for a, b in pairwise(cuts)]

    @property
    def nbytes(self) -> int:
        """Bytes of the moment in fp32."""
        return 4 * sum(size**2 for size in self.blocks)

    def sees_sample(self, sample: str) -> bool:
        """Whether it depends on the noisy ``sample``."""
        return sample in self.sees

    def only_time(self, sample: str) -> bool:
        """Whether it depends on the time step and not on the noisy ``sample``, so that it has one value a step."""
        return sample not in self.sees and any("timestep" in name for name in self.sees)

    def only_condition(self, sample: str) -> bool:
        """Whether it depends on the condition (text) alone."""
        return sample not in self.sees and not self.only_time(sample)


def find_sources(
    denoiser: nn.Module, graph: Graph, units: Sequence[str], call: RecordedCall
) -> tuple[list[Source], list[str]]:
    """(sources in the order of ``units``, units that were not called).

    Units share a source if the graph says that they read the same nodes, and if in ``call`` they were given the same
    values: norms between a node and a layer are no nodes of their own.
    """
    seen: dict[str, tuple[Any, ...]] = {}
    handles = []

    def watch(layer: WeightLayer) -> None:
        module = denoiser.get_submodule(layer.module)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            if layer.module not in seen:
                seen[layer.module] = (tuple(x.shape), float(x.double().sum()), float(x.double().abs().sum()))

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    layers = [graph.layers[unit] for unit in units]
    for layer in {layer.module: layer for layer in layers}.values():
        watch(layer)
    try:
        with torch.no_grad():
            call.run(denoiser)
    finally:
        for handle in handles:
            handle.remove()
    called = [layer.name for layer in layers if layer.module in seen]
    sources = _grouped(graph, called, lambda layer: (seen[layer.module], _geometry(denoiser, layer)))
    return sources, [layer.name for layer in layers if layer.module not in seen]


def likely_sources(graph: Graph, units: Sequence[str]) -> list[Source]:
    """What :func:`find_sources` will find, by the graph alone; a few more where norms stand between."""
    return _grouped(graph, units, _inputs)


def _grouped(graph: Graph, units: Sequence[str], further: Callable[[WeightLayer], Any]) -> list[Source]:
    """Units that read the same part of the same nodes and have the same ``further`` properties, in order."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for layer in (graph.layers[unit] for unit in units):
        node = graph.nodes[graph.index[layer.name]]
        groups.setdefault((node.inputs, node.sees, layer.span, further(layer)), []).append(layer.name)
    return [Source(tuple(names), _inputs(graph.layers[names[0]]), key[1]) for key, names in groups.items()]


def _geometry(denoiser: nn.Module, layer: WeightLayer) -> tuple[Any, ...]:
    module: Any = denoiser.get_submodule(layer.module)
    if isinstance(module, nn.Linear):
        return ("linear",)
    return (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)


def _inputs(layer: WeightLayer) -> int:
    return layer.weights // layer.shape[0]


def passes(sources: Sequence[tuple[int, Source]], memory: int) -> list[list[tuple[int, Source]]]:
    """Sources, with their places, in groups whose moments fit into ``memory`` bytes together; a larger one is alone."""
    groups: list[list[tuple[int, Source]]] = []
    room = 0
    for place, source in sources:
        if not groups or source.nbytes > room:
            groups.append([])
            room = memory
        groups[-1].append((place, source))
        room -= source.nbytes
    return groups
