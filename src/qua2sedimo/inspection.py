"""What `inspect` shows: weight layers, parts and graph of a denoiser, with weights or from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qua2sedimo import zoo
from qua2sedimo.denoisers import (
    Graph,
    WeightLayer,
    architecture,
    built_inputs,
    capture_call,
    denoiser_of,
    load_denoiser,
    load_pipeline,
    read_inputs,
    trace,
    weight_layers,
)
from qua2sedimo.denoisers.drawing import DRAWN, drawing
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.denoisers.patterns import matching
from qua2sedimo.denoisers.pipelines import denoisers_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_ours, check_writable, write_text
from qua2sedimo.images.generate import Generation, Generator, check_arguments, input_argument
from qua2sedimo.options import SearchSpace, options_for


@dataclass(frozen=True)
class Inspection:
    """A traced denoiser; ``layers``: all its whole weight layers, including bypassed ones.

    ``values``: whether it has weights; ``inputs``: where the inputs of the traced forward came from; ``others``: names
    of further denoisers of the same pipeline.
    """

    graph: Graph
    layers: Mapping[str, WeightLayer]
    space: SearchSpace
    values: bool
    inputs: str
    others: tuple[str, ...] = ()

    @cached_property
    def weights(self) -> int:
        """Number of weights of all layers, without biases; tied copies count separately."""
        return sum(layer.weights for layer in self.layers.values())

    def matching(self, pattern: str) -> list[WeightLayer]:
        """Units whose name or module matches, in the denoiser's order; raises :class:`Qua2SeDiMoError` without any."""
        units = self.graph.layers
        found = [units[name] for name in matching(pattern, {name: (name, u.module) for name, u in units.items()})]
        if not found:
            raise Qua2SeDiMoError(f"no layer of {self.graph.denoiser} matches '{pattern}'", "Try --layer '*attn*'.")
        return found

    def document(self, pattern: str = "*") -> dict[str, Any]:
        """The inspection as plain data."""
        low, high = self.space.byte_range()
        graph = self.graph
        return {
            "denoiser": graph.denoiser,
            "weights_present": self.values,
            "inputs": self.inputs,
            "totals": {
                "layers": len(self.layers),
                "weights": self.weights,
                "units": len(graph.layers),
                "parts": sum(unit.span is not None for unit in graph.layers.values()),
                "quantizable_weights": self.space.weights,
                "bytes_16bit": 2 * self.space.weights,
                "bytes_least": low,
                "bytes_most": high,
                "macs": sum(unit.macs for unit in graph.layers.values()),
                "nodes": len(graph.nodes),
                "edges": len(graph.edges),
            },
            "layers": [
                {
                    **asdict(unit),
                    "weights": unit.weights,
                    "macs": unit.macs,
                    "share": unit.weights / self.space.weights,
                    "bytes": {str(o): o.nbytes(unit.shape) for o in self.space.options[unit.name]},
                }
                for unit in self.matching(pattern)
            ],
            "edges": [[graph.nodes[a].name, graph.nodes[b].name] for a, b in graph.edges],
            "bypassed": list(graph.bypassed),
            "left_alone": list(graph.left_alone),
            "tied_candidates": [list(group) for group in graph.tied_candidates],
        }


def inspected(
    model: str,
    option_set: str = "wide",
    component: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    inputs: Path | None = None,
    loading: Loading = Loading(),
) -> Inspection:
    """Inspect a zoo name, a pipeline or denoiser folder, a safetensors file, a hub name, or a ``config.json``.

    A pipeline's inputs are captured from one real step with ``arguments``; a bare denoiser's are built from its
    configuration; ``inputs``, a file of them, overrides both. The forward runs with fake weights.
    """
    options_for(option_set, (64, 64))  # unknown options are an error before a model is loaded
    given = read_inputs(inputs) if inputs else None
    path = Path(model).expanduser()
    bare = (path / "config.json").is_file() and not (path / "model_index.json").is_file()
    if path.suffix == ".json" or bare:
        denoiser = load_denoiser(path) if bare else architecture(path)
        call = given if given is not None else built_inputs(denoiser)
        return _traced(denoiser, (), call, option_set, str(inputs or "built from the configuration"), ())
    pipeline = load_pipeline(model, loading)
    name, denoiser = denoiser_of(pipeline, component)
    others = tuple(other for other in denoisers_of(pipeline) if other != name)
    if given is not None:
        return _traced(denoiser, (), given, option_set, str(inputs), others)
    generator = _generator(model, pipeline, arguments or {})
    captured = capture_call(pipeline, denoiser, run=lambda: generator.run([0]))
    origin = "captured from one step of the pipeline"
    return _traced(denoiser, captured.args, captured.kwargs, option_set, origin, others)


def denoiser_named(model: str, component: str | None = None, loading: Loading = Loading()) -> nn.Module:
    """The denoiser with its weights, from a zoo name, a pipeline or denoiser folder, a safetensors file, or a hub
    name."""
    path = Path(model).expanduser()
    if path.suffix == ".json":
        raise Qua2SeDiMoError(f"{path} is an architecture without weights", "Give the folder with the weights.")
    if (path / "config.json").is_file() and not (path / "model_index.json").is_file():
        return load_denoiser(path)
    return denoiser_of(load_pipeline(model, loading), component)[1]


def _generator(model: str, pipeline: Any, arguments: Mapping[str, Any]) -> Generator:
    """Generates images of an arbitrary input."""
    defaults: dict[str | None, list[str | int]] = {"prompt": ["a picture"], "class_labels": [0], None: []}
    known = zoo.ENTRIES[model].arguments if model in zoo.ENTRIES else {}
    asked = {**known, **arguments}
    check_arguments(pipeline, asked)
    return Generator(pipeline, Generation(defaults[input_argument(pipeline)], asked))


def _traced(
    denoiser: nn.Module, args: Any, kwargs: Mapping[str, Any], option_set: str, origin: str, others: tuple[str, ...]
) -> Inspection:
    graph = trace(denoiser, args, kwargs, parts=True, ties=True, compute=False)
    space = SearchSpace.of({name: unit.shape for name, unit in graph.layers.items()}, option_set)
    values = not any(isinstance(p, torch.Tensor) and p.is_meta for p in denoiser.parameters())
    return Inspection(graph, weight_layers(denoiser), space, values, origin, others)


def check_graph_file(path: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if :func:`write_graph` cannot write to ``path``, or another file is there."""
    if path.suffix not in (".json", ".svg"):
        raise Qua2SeDiMoError(f"--graph {path}: unknown ending '{path.suffix}'", "Name a file .json or .svg.")
    check_writable(path)
    check_ours(path, "tied_candidates" if path.suffix == ".json" else DRAWN)


def write_graph(graph: Graph, path: Path) -> None:
    """Write the graph as data (``.json``) or as a drawing (``.svg``), by the extension."""
    check_graph_file(path)
    if path.suffix == ".json":
        graph.save(path)
    else:
        write_text(path, drawing(graph))
