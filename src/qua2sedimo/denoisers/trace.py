"""Trace one forward pass into a graph of weight layers and the operations that combine their outputs.

A dispatch mode intercepts every tensor operation and records for each tensor the graph node that it comes from. A call
of a weight layer becomes a layer node; an operation on tensors from two or more nodes becomes a combine node; any
other operation keeps the node of its input. This works for real, meta and fake tensors and needs no per-model code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from qua2sedimo.denoisers.absent import call_without_values, has_absent_weights, without_values
from qua2sedimo.denoisers.components import arguments_of, as_called, is_decoder
from qua2sedimo.denoisers.graph import Graph
from qua2sedimo.denoisers.layers import WeightLayer, other_weights, weight_layers, weight_modules
from qua2sedimo.denoisers.reduction import Spans, reduced
from qua2sedimo.denoisers.ties import tied, tied_candidates
from qua2sedimo.denoisers.tracer import Tracer
from qua2sedimo.errors import Qua2SeDiMoError, remedy_for


def trace(
    denoiser: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    parts: bool = False,
    ties: bool = False,
    compute: bool = True,
) -> Graph:
    """Run ``denoiser(*args, **kwargs)`` once, of an autoencoder its ``decode``, and return its graph.

    ``parts``: split a layer whose input channels are a concatenation into one part per operand. ``ties``: merge layers
    with equal weights and equal inputs. With ``compute=False``, or if weights are on the meta device, parameters are
    replaced by fake tensors: tracing then takes seconds for a model of any size. If weights are on the meta device, the
    graph lists layers that may be tied instead of merging them.

    Raises :class:`Qua2SeDiMoError` if the forward pass fails on these inputs.
    """
    layers = weight_layers(denoiser)
    absent = has_absent_weights(denoiser)
    tensors: dict[str, torch.Tensor] = {}
    args, kwargs = tuple(args), dict(kwargs or {})
    if absent or not compute:
        tensors, args, kwargs = without_values(denoiser, args, kwargs)
    tracer = Tracer()
    numbers = set()
    for name, tensor in _named_tensors(_bound(denoiser, args, kwargs)):
        tracer.mark_input(name, tensor)
        if tensor.numel() == (tensor.shape[0] if tensor.ndim else 1):  # one number per sample
            numbers.add(name)
    hooks = [
        hook
        for layer in layers.values()
        for module in (layer.module, *layer.copies)
        for hook in tracer.hook(layer.name, denoiser.get_submodule(module))
    ]
    training = denoiser.training
    denoiser.eval()
    try:
        # Eagerly: flex_attention compiles itself, and a dispatch mode cannot see into compiled code.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), as_called(denoiser), tracer:
            output = call_without_values(denoiser, tensors, args, kwargs) if tensors else denoiser(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError) as error:
        raise Qua2SeDiMoError(
            f"{type(denoiser).__name__}: the forward pass failed while tracing: {error}",
            remedy_for(
                error, "Check its inputs: --arguments for a pipeline, `inspect --inputs FILE.json` for a bare denoiser."
            ),
        ) from error
    finally:
        denoiser.train(training)
        for hook in hooks:
            hook.remove()
    nodes, spans = reduced(tracer.nodes, tracer.sources_of(_plain(output)), parts)
    found = {node.name for node in nodes if node.kind == "layer"}
    counted = [replace(layer, positions=tracer.positions.get(name, 0)) for name, layer in layers.items()]
    units = {unit.name: unit for layer in counted for unit in _units(layer, spans) if unit.name in found}
    reached = {unit.module for unit in units.values()}
    bypassed = tuple(name for name in layers if name not in reached)
    graph = Graph(type(denoiser).__name__, tuple(nodes), units, bypassed, left_alone=other_weights(denoiser))
    if absent:
        return replace(graph, tied_candidates=tied_candidates(graph, denoiser, numbers))
    return tied(graph, weight_modules(denoiser)) if ties else graph


def _bound(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the forward pass by name."""
    if is_decoder(denoiser):
        return arguments_of(args, kwargs)
    try:
        return dict(inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise Qua2SeDiMoError(f"{type(denoiser).__name__} does not take these arguments: {error}") from error


def _units(layer: WeightLayer, spans: Spans) -> list[WeightLayer]:
    return [layer.part(*span) for span in spans[layer.name]] if layer.name in spans else [layer]


def _named_tensors(arguments: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors among the arguments with names: ``timestep``, ``added_cond_kwargs.time_ids``, ``residuals.3``."""
    for path, value in tree_flatten_with_path(dict(arguments))[0]:
        if isinstance(value, torch.Tensor):
            yield ".".join(part.strip("'\"") for part in keystr(path).strip("[]").split("][")), value


def _plain(output: Any) -> list[Any]:
    return tree_leaves(tuple(output.values()) if isinstance(output, Mapping) else output)
