"""The graph of a denoiser: its weight layers and the operations that combine their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from qua2sedimo.denoisers.layers import WeightLayer
from qua2sedimo.formats.document import Document

#: Kinds of combine nodes.
COMBINES = ("add", "multiply", "modulate", "product", "concat", "combine")


@dataclass(frozen=True)
class Node:
    """A weight layer or part (``kind == "layer"``) or a combine node; ``inputs`` are indices of earlier nodes.

    ``sees`` names the denoiser's inputs that the node depends on: ``hidden_states``, ``timestep``,
    ``added_cond_kwargs.time_ids``.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    sees: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, the weight layers among them, and the layers that are not quantized.

    ``layers`` are keyed by unit name: the module's name, or ``MODULE[a:b]`` for a part. ``bypassed`` modules are never
    called as modules (a fused operation reads their weights) or do not reach the output; they are not quantized.
    ``left_alone`` are other modules with weights, such as transposed convolutions and embeddings.
    ``tied_candidates`` are groups of modules that may have equal weights; they are listed only if the weights were not
    available for comparison (:mod:`qua2sedimo.denoisers.ties`).
    """

    denoiser: str
    nodes: tuple[Node, ...]
    layers: dict[str, WeightLayer]
    bypassed: tuple[str, ...] = ()
    tied_candidates: tuple[tuple[str, ...], ...] = ()
    left_alone: tuple[str, ...] = ()

    @cached_property
    def index(self) -> dict[str, int]:
        """Node index of each layer or part."""
        return {node.name: i for i, node in enumerate(self.nodes) if node.kind == "layer"}

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        return [(source, i) for i, node in enumerate(self.nodes) for source in node.inputs]

    def reaching(self, targets: Sequence[int], hops: int) -> set[int]:
        """Ancestors of ``targets`` at most ``hops`` edges away, and the targets themselves."""
        found, frontier = set(targets), set(targets)
        for _ in range(hops):
            frontier = {source for i in frontier for source in self.nodes[i].inputs} - found
            found |= frontier
        return found

    def save(self, path: Path) -> None:
        """Write the graph as JSON, whole or not at all."""
        GraphFile(
            denoiser=self.denoiser,
            nodes=[(n.name, n.kind, n.inputs, n.sees) for n in self.nodes],
            layers=list(self.layers.values()),
            bypassed=self.bypassed,
            tied_candidates=self.tied_candidates,
            left_alone=self.left_alone,
        ).save(path)

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Read what :meth:`save` wrote; raises :class:`Qua2SeDiMoError` if that is missing, damaged or foreign."""
        content = GraphFile.load(path)
        nodes = tuple(Node(*node) for node in content.nodes)
        layers = {layer.name: layer for layer in content.layers}
        return cls(content.denoiser, nodes, layers, content.bypassed, content.tied_candidates, content.left_alone)


class GraphFile(Document):
    """graph.json: a :class:`Graph`; a node is (name, kind, inputs, sees)."""

    remedy: ClassVar[str] = "Move it away: the next command traces the denoiser again."

    indent: ClassVar[int | None] = None

    format: Literal[3] = 3
    denoiser: str
    nodes: list[tuple[str, str, tuple[int, ...], tuple[str, ...]]]
    layers: list[WeightLayer]
    bypassed: tuple[str, ...]
    tied_candidates: tuple[tuple[str, ...], ...]
    left_alone: tuple[str, ...]

    @classmethod
    def upgraded(cls, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """Format 2 did not list the modules that are left alone."""
        return {**content, "format": 3, "left_alone": []} if content.get("format") == 2 else content
