"""What people do with a packed model of a class: save, copy, cast, offload, adapt it, round its activations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import cpu_offload
from tests.denoisers.coverage.check import built, outputs
from torch import nn

from qua2sedimo.denoisers import trace, unit_weight, weight_modules
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import QuantizedLayer, dequantize, pack, set_activation_bits
from qua2sedimo.system.quiet import quiet

YES = "yes"
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # what most adapters change
Outputs = list[torch.Tensor]


def packed(name: str) -> nn.Module:
    """The small instance of a class, every traced unit packed in memory at uaq-4."""
    model, inputs = built(name)
    graph = trace(model, (), inputs, parts=True, ties=True)
    modules = weight_modules(model)
    values = {n: METHODS["uaq"].quantize(unit_weight(modules, unit), [4])[0] for n, unit in graph.layers.items()}
    return pack(model, values, {unit.module: unit.copies for unit in graph.layers.values() if unit.copies})


def answers(name: str, folder: Path) -> dict[str, str]:
    """Question → "yes", "n/a: why" or what does not hold."""
    model = packed(name)
    with quiet():
        expected = outputs(model, name)
        return {
            question: _answer(ask, copy.deepcopy(model), expected, name, folder) for question, ask in QUESTIONS.items()
        }


def _answer(ask: Callable[..., str], model: nn.Module, expected: Outputs, name: str, folder: Path) -> str:
    try:
        return ask(model, expected, name, folder)
    except Qua2SeDiMoError as refused:
        return f"refused: {refused.message}"
    except Exception as error:
        return _also_for_a_plain_model(error, ask, name, folder)


def _also_for_a_plain_model(error: Exception, ask: Callable[..., str], name: str, folder: Path) -> str:
    """An error that a plain model gives too is one of diffusers, accelerate or PEFT."""
    plain = dequantize(packed(name))
    try:
        ask(plain, outputs(plain, name), name, folder)
    except type(error):
        return "n/a: not for a plain model either"
    raise error


def same(found: Outputs, expected: Outputs) -> str:
    equal = len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected))
    return YES if equal else "other output"


def _saved(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    model.save_pretrained(folder, max_shard_size="20KB")
    return same(outputs(type(model).from_pretrained(folder), name), expected)


def _copied(model: nn.Module, expected: Outputs, name: str, folder: Path) -> str:
    return same(outputs(model, name), expected)  # each question is asked of a deep copy


def _cast(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    before = [layer.weight.double() for layer in layers]
    model.to(torch.float64)
    if not all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before)):
        return "other weights in float64"
    return same(outputs(model.to(torch.float32), name), expected)


def _offloaded(model: nn.Module, expected: Outputs, name: str, folder: Path) -> str:
    cpu_offload(model, torch.device("cpu"))
    held = sum(
        p.nbytes for m in model.modules() if isinstance(m, QuantizedLayer) for p in m.parameters() if not p.is_meta
    )
    return same(outputs(model, name), expected) if held == 0 else f"{held} bytes stay on the device"


def _adapter(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    if not hasattr(model, "add_adapter"):
        return "n/a: diffusers has no adapters for it"
    names = [n for n, m in model.named_modules() if isinstance(m, QuantizedLayer) and isinstance(m, nn.Linear)]
    names = [name for name in names if name.endswith(_PROJECTIONS)] or names
    plain = dequantize(copy.deepcopy(model))
    made = []
    for one in (model, plain):
        torch.manual_seed(1)
        one.add_adapter(peft.LoraConfig(r=1, lora_alpha=1, target_modules=names, init_lora_weights=False))
        made.append(outputs(one, name))
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*made)):
        return "other output than beside plain layers"
    model.unload_lora()
    return same(outputs(model, name), expected)


def _activations(model: nn.Module, expected: Outputs, name: str, folder: Path) -> str:
    found = outputs(set_activation_bits(model, 8), name)
    far = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected))
    if not 0 < far < 1:
        return f"outputs differ by {far:.1e}"
    return same(outputs(set_activation_bits(model, None), name), expected)


#: What is asked of each class, each of a copy of its packed model.
QUESTIONS: dict[str, Callable[..., str]] = {
    "saved again": _saved,
    "copied": _copied,
    "cast": _cast,
    "offloaded": _offloaded,
    "adapter": _adapter,
    "8-bit activations": _activations,
}
