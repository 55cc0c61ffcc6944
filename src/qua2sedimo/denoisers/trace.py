"""From one forward pass to the graph: follow which values every operation reads.

A dispatch mode sees each tensor operation of a real forward (on real, meta or fake tensors alike) and carries for
every tensor the node it comes from. Calls of weight layers become layer nodes; an operation that reads values
from two or more nodes becomes a combine node; everything else passes its source on. No per-model code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from qua2sedimo.denoisers.graph import Graph
from qua2sedimo.denoisers.layers import WeightLayer, weight_layers
from qua2sedimo.denoisers.reduction import Spans, reduced
from qua2sedimo.denoisers.tracer import Tracer
from qua2sedimo.errors import Qua2SeDiMoError


def trace(
    denoiser: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, parts: bool = False
) -> Graph:
    """Run ``denoiser(*args, **kwargs)`` once and return its graph.

    With ``parts``, a layer that reads a concatenation along its input channels is cut where they were joined.

    Raises :class:`Qua2SeDiMoError` if the forward fails on these inputs.
    """
    layers = weight_layers(denoiser)
    tracer = Tracer()
    bound = inspect.signature(denoiser.forward).bind(*args, **dict(kwargs or {}))
    for name, tensor in _named_tensors(bound.arguments):
        tracer.mark_input(name, tensor)
    hooks = [
        hook
        for layer in layers.values()
        for module in (layer.module, *layer.copies)
        for hook in tracer.hook(layer.name, denoiser.get_submodule(module))
    ]
    training = denoiser.training
    denoiser.eval()
    try:
        with torch.no_grad(), tracer:
            output = denoiser(*args, **dict(kwargs or {}))
    except (RuntimeError, TypeError, ValueError) as error:
        raise Qua2SeDiMoError(f"{type(denoiser).__name__}: the forward pass failed while tracing: {error}") from error
    finally:
        denoiser.train(training)
        for hook in hooks:
            hook.remove()
    nodes, spans = reduced(tracer.nodes, tracer.sources_of(_plain(output)), parts)
    found = {node.name for node in nodes if node.kind == "layer"}
    units = {unit.name: unit for layer in layers.values() for unit in _units(layer, spans) if unit.name in found}
    reached = {unit.module for unit in units.values()}
    return Graph(
        denoiser=type(denoiser).__name__,
        nodes=tuple(nodes),
        layers=units,
        bypassed=tuple(name for name in layers if name not in reached),
    )


def _units(layer: WeightLayer, spans: Spans) -> list[WeightLayer]:
    return [layer.part(*span) for span in spans[layer.name]] if layer.name in spans else [layer]


def _named_tensors(arguments: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor among the arguments with its name: ``timestep``, ``added_cond_kwargs.time_ids``, ``residuals.3``."""
    for path, value in tree_flatten_with_path(dict(arguments))[0]:
        if isinstance(value, torch.Tensor):
            yield ".".join(part.strip("'\"") for part in keystr(path).strip("[]").split("][")), value


def _plain(output: Any) -> list[Any]:
    return tree_leaves(tuple(output.values()) if isinstance(output, Mapping) else output)
