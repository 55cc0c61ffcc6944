"""The graph of a denoiser: weight layers and the places where their data meet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qua2sedimo.denoisers.layers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_document, write_text

FORMAT = 2
_REMEDY = "Delete it; it will be traced again."

#: What a combine node does with the data that meet in it.
COMBINES = ("add", "multiply", "modulate", "product", "concat", "combine")


@dataclass(frozen=True)
class Node:
    """A weight layer or part (``kind == "layer"``) or a combine node; ``inputs`` are indices of earlier nodes.

    ``sees`` names the denoiser's inputs that the node's value depends on: ``hidden_states``, ``timestep``, or for
    nested ones ``added_cond_kwargs.time_ids``.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    sees: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, the weight layers among them, and the layers found outside the data flow.

    ``layers`` go by unit name: a module's, or ``MODULE[a:b]`` for a part. ``bypassed`` modules are never called (a
    fused call reads their weights), or do not reach the output; they cannot be measured by quantizing the module and
    are left alone. ``tied_candidates`` are, where weights were absent, groups of modules that may hold equal weights:
    their values will tell (:mod:`qua2sedimo.denoisers.ties`).
    """

    denoiser: str
    nodes: tuple[Node, ...]
    layers: dict[str, WeightLayer]
    bypassed: tuple[str, ...] = ()
    tied_candidates: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def index(self) -> dict[str, int]:
        """Node index of each layer or part."""
        return {node.name: i for i, node in enumerate(self.nodes) if node.kind == "layer"}

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        return [(source, i) for i, node in enumerate(self.nodes) for source in node.inputs]

    def reaching(self, targets: Sequence[int], hops: int) -> set[int]:
        """Nodes from which some target is at most ``hops`` edges away, the targets included."""
        found, frontier = set(targets), set(targets)
        for _ in range(hops):
            frontier = {source for i in frontier for source in self.nodes[i].inputs} - found
            found |= frontier
        return found

    def save(self, path: Path) -> None:
        """Write the graph as JSON, whole or not at all."""
        content = {
            "format": FORMAT,
            "denoiser": self.denoiser,
            "nodes": [[n.name, n.kind, list(n.inputs), list(n.sees)] for n in self.nodes],
            "layers": [vars(layer) for layer in self.layers.values()],
            "bypassed": list(self.bypassed),
            "tied_candidates": [list(group) for group in self.tied_candidates],
        }
        write_text(path, json.dumps(content))

    @classmethod
    def load(cls, path: Path) -> Graph:
        """Read what :meth:`save` wrote; raises :class:`Qua2SeDiMoError` if that is missing, damaged or foreign."""
        content = read_document(path, FORMAT, _REMEDY)
        try:
            nodes = tuple(Node(n, kind, tuple(inputs), tuple(sees)) for n, kind, inputs, sees in content["nodes"])
            layers = {x["name"]: _layer(x) for x in content["layers"]}
            candidates = tuple(tuple(group) for group in content["tied_candidates"])
            return cls(content["denoiser"], nodes, layers, tuple(content["bypassed"]), candidates)
        except (KeyError, TypeError, ValueError) as error:
            raise Qua2SeDiMoError(f"{path} is damaged: {error!r}", _REMEDY) from error


def _layer(content: dict[str, Any]) -> WeightLayer:
    span = content["span"]
    tuples = {"shape": tuple(content["shape"]), "copies": tuple(content["copies"])}
    return WeightLayer(**{**content, **tuples, "span": None if span is None else (int(span[0]), int(span[1]))})
