"""The denoisers of a study: one, or several of one pipeline that share its budget, named COMPONENT.LAYER."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from qua2sedimo.denoisers import (
    Graph,
    JoinedCheckpoint,
    capture_call,
    denoiser_checkpoint,
    joined_graph,
    part_of,
    trace,
)
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.formats.tensorfiles import Checkpoint
from qua2sedimo.images.generate import Generator

T = TypeVar("T")
#: Weights from which a denoiser is large: its images and calls take seconds, so that fewer are observed and weighed.
LARGE = 100_000_000


@dataclass(frozen=True)
class DenoiserPart:
    """One denoiser of a study: ``prefix`` of its units' names in the study ("" unless there are several), its own graph
    and units, named without it."""

    prefix: str
    denoiser: nn.Module
    graph: Graph
    units: Sequence[str]

    @property
    def component(self) -> str:
        return self.prefix.removesuffix(".")

    @property
    def copies(self) -> dict[str, tuple[str, ...]]:
        """Module → other modules with the same weights, by their names in this denoiser."""
        layers = (self.graph.layers[name] for name in self.units)
        return {layer.module: layer.copies for layer in layers if layer.copies}

    def own(self, mapping: Mapping[str, T]) -> dict[str, T]:
        """The entries of this denoiser's units, by their names in it."""
        return {name: mapping[self.prefix + name] for name in self.units if self.prefix + name in mapping}


def parts_of(
    denoisers: Mapping[str, nn.Module], graph: Graph, units: Sequence[str], several: bool
) -> list[DenoiserPart]:
    """Each denoiser by itself, with its part of the study's graph and of the units that are quantized."""
    if not several:
        (denoiser,) = denoisers.values()
        return [DenoiserPart("", denoiser, graph, units)]
    own = {name: [u.removeprefix(f"{name}.") for u in units if u.startswith(f"{name}.")] for name in denoisers}
    return [DenoiserPart(f"{name}.", d, part_of(name, graph), own[name]) for name, d in denoisers.items()]


def traced(
    generator: Generator, denoisers: Mapping[str, nn.Module], several: bool, at_rest: AbstractContextManager[None],
    compute: bool = True, split: bool = True,
) -> Graph:  # fmt: skip
    """The graph of the denoisers, each traced from its first call while an image is made.

    With ``split``, layers are taken in parts, and equal ones as one. Within ``at_rest``, their weights are where they
    usually are. Without ``compute``, only shapes are traced.
    Raises :class:`Qua2SeDiMoError` if one is not reached with the study's arguments.
    """
    calls = {
        component: capture_call(generator.pipeline, denoiser, run=lambda: generator.run([0]))
        for component, denoiser in denoisers.items()
    }
    graphs = {}
    with at_rest:
        for component, call in calls.items():
            call = call if compute else call.on_cpu()
            graphs[component] = trace(
                denoisers[component], call.args, call.kwargs, parts=split, ties=split, compute=compute
            )
    return joined_graph(graphs) if several else next(iter(graphs.values()))


def checkpoint_of(model: str, component: str | Sequence[str] | None, loading: Loading) -> Checkpoint | None:
    """The denoisers' files, if the model is a folder that has them."""
    if component is None or isinstance(component, str):
        return denoiser_checkpoint(model, component, loading)
    found = {name: denoiser_checkpoint(model, name, loading) for name in component}
    own = {name: checkpoint for name, checkpoint in found.items() if checkpoint is not None}
    return JoinedCheckpoint(own) if own else None
