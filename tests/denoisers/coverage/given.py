"""What is asked of a plain model of a class: 16 bits, your own function, and models that were changed already."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import cpu_offload
from tests.answers import YES, answered, refused
from tests.conftest import small_settings
from tests.denoisers.coverage.check import built, outputs
from tests.denoisers.coverage.use import adapter, packed
from torch import nn

from qua2sedimo import CallablePipeline, Study, load_packed
from qua2sedimo.denoisers import Graph, trace, unit_weight, weight_modules
from qua2sedimo.denoisers.exact import same_bits
from qua2sedimo.denoisers.pipelines import refuse_given
from qua2sedimo.denoisers.stored import kept_in_fp32
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight
from qua2sedimo.runtime import QuantizedLayer, save_packed
from qua2sedimo.study.stages.export import save_configuration
from qua2sedimo.system.quiet import quiet


def given_answers(name: str, folder: Path) -> dict[str, str]:
    """Question → "yes", "n/a: why" or what does not hold."""
    with quiet():
        return {question: answered(ask, name, folder / question) for question, ask in GIVEN.items()}


def _in(dtype: torch.dtype) -> Callable[[str, Path], str]:
    """A measured model in 16 bits and its export loaded again are the same, bit for bit, in the same dtypes."""

    def ask(name: str, folder: Path) -> str:
        plain, inputs = built(name)
        graph = trace(plain, (), inputs, parts=True, ties=True)
        plain.save_pretrained(folder / "plain")
        kind: Any = type(plain)
        measured = kind.from_pretrained(folder / "plain", torch_dtype=dtype)
        kept = kept_in_fp32(kind)
        for place, tensor in measured.state_dict().items():
            right = torch.float32 if any(part in kept for part in place.split(".")) else dtype
            if tensor.is_floating_point() and tensor.dtype != right:
                return f"'{place}' is loaded as {tensor.dtype}"
        values = _values(measured, graph)
        save_packed(measured, None, values, folder / "packed", copies=_copies(graph))
        _write(measured, graph, values)
        loaded = kind.from_pretrained(folder / "packed", torch_dtype=dtype)
        return _difference(measured, loaded)

    return ask


def _values(model: nn.Module, graph: Graph) -> dict[str, QuantizedWeight]:
    modules = weight_modules(model)
    return {n: METHODS["uaq"].quantize(unit_weight(modules, unit), [4])[0] for n, unit in graph.layers.items()}


def _copies(graph: Graph) -> dict[str, tuple[str, ...]]:
    return {unit.module: unit.copies for unit in graph.layers.values() if unit.copies}


def _write(model: nn.Module, graph: Graph, values: dict[str, QuantizedWeight]) -> None:
    """What a study measures: the decoded weights in the layers' own dtypes."""
    modules = weight_modules(model)
    with torch.no_grad():
        for name, value in values.items():
            unit = graph.layers[name]
            for module in (unit.module, *(copied for copied in unit.copies if copied in modules)):
                unit_weight(modules, replace(unit, module=module)).copy_(dequantize_weight(value))


def _difference(measured: nn.Module, loaded: nn.Module) -> str:
    """The first tensor that differs, in bits or in its dtype; "yes" if none does."""
    found = dict(loaded.state_dict())
    for place, module in loaded.named_modules():
        if isinstance(module, QuantizedLayer):
            found[f"{place}.weight"] = module.weight
    for place, tensor in measured.state_dict().items():
        other = found[place]
        if tensor.is_floating_point() and (tensor.dtype != other.dtype or not same_bits(tensor, other.detach())):
            return f"'{place}' is {tensor.dtype} in the measured model, {other.dtype} in the export, or differs in bits"
    return YES


def _own_function(name: str, folder: Path) -> str:
    """A study of the denoiser with a function in place of a pipeline: measured, exported, loaded."""
    model, _ = built(name)

    def generate(inputs: None, noise: list[torch.Generator]) -> np.ndarray:
        flat = torch.cat([tensor.flatten().float() for tensor in outputs(model, name)])
        number = torch.arange(192) % len(flat)
        drawn = [torch.randn(8, 8, 3, generator=generator) for generator in noise]
        return torch.stack([flat[number].reshape(8, 8, 3) + one for one in drawn]).sigmoid().numpy()

    asked = small_settings(model=name, inputs=[], arguments={}, options="uaq-4", rounding="nearest")
    study = Study.create(folder / "study", asked, CallablePipeline(model, generate, None))
    if len(study.measure(1)) != 1:
        return "nothing is measured"
    inside = study.workspace
    inside.switch.restore()
    save_configuration(inside, inside.space.uniform(Option.parse("uaq-4")), folder / "out", {})
    other, _ = built(name)
    loaded = load_packed(other, folder / "out") if not hasattr(model, "save_pretrained") else None
    loaded = type(model).from_pretrained(folder / "out") if loaded is None else loaded
    return YES if any(isinstance(module, QuantizedLayer) for module in loaded.modules()) else "nothing is packed"


def _changed(name: str) -> Iterator[tuple[str, nn.Module]]:
    """(what was done to it, model) for each kind of model that cannot be quantized."""
    plain, _ = built(name)
    models: list[Any] = [copy.deepcopy(plain) for _ in range(5)]
    if hasattr(plain, "enable_layerwise_casting"):
        models[0].enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        yield "cast layer by layer", models[0]
    if hasattr(plain, "add_adapter"):
        models[1].add_adapter(adapter(models[1], nn.Linear))
        yield "with an adapter", models[1]
    cpu_offload(models[2], torch.device("cpu"))
    yield "offloaded", models[2]
    if getattr(plain, "_supports_group_offloading", False):
        models[3].enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level")
        yield "offloaded in groups", models[3]
    weight = next(iter(weight_modules(models[4]).values()))
    weight.weight.data = weight.weight.data.to(torch.float8_e4m3fn)
    yield "stored in 8 bits", models[4]
    yield "packed", packed(name)


def _refused_if_changed(name: str, folder: Path) -> str:
    for what, model in _changed(name):
        own = CallablePipeline(model, lambda inputs, noise: None, None)
        if not refused(lambda own=own: refuse_given(own, None)):  # type: ignore[misc]
            return f"a model that is {what} is taken"
    return YES


#: What is asked of the plain model of each class.
GIVEN: dict[str, Callable[[str, Path], str]] = {
    "in bf16": _in(torch.bfloat16),
    "in fp16": _in(torch.float16),
    "your own function": _own_function,
    "refused if changed": _refused_if_changed,
}
