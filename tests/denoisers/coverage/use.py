"""What people do with a packed model of a class: save, copy, cast, offload, adapt it, round its activations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import cpu_offload
from diffusers.training_utils import EMAModel
from tests.answers import YES, answered, refused
from tests.denoisers.coverage.check import built, outputs
from torch import nn

from qua2sedimo.denoisers import trace, unit_weight, weight_modules
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import QuantizedLayer, dequantize, pack, set_activation_bits
from qua2sedimo.system.quiet import quiet

NO_ADAPTERS = "n/a: diffusers has no adapters for it"
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
    found = answered(ask, model, expected, name, folder)
    if found == YES or found.startswith(("n/a", "refused")):
        return found
    plain = dequantize(packed(name))  # an error that a plain model gives too is one of diffusers, accelerate or PEFT
    beside = answered(ask, plain, outputs(plain, name), name, folder / "plain")
    return f"n/a: nor for a plain model: {found}" if beside.split(":")[0] == found.split(":")[0] else found


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


def _grouped(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    if not getattr(model, "_supports_group_offloading", False):
        return "n/a: diffusers has no group offloading for it"
    model.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level")
    return same(outputs(model, name), expected)


def adapter(model: nn.Module, kind: type = QuantizedLayer, **given: Any) -> peft.LoraConfig:
    """The config of an adapter of a model's Linear layers of this kind, of those that most adapters change if any."""
    names = [n for n, m in model.named_modules() if isinstance(m, kind) and isinstance(m, nn.Linear)]
    names = [name for name in names if name.endswith(_PROJECTIONS)] or names
    return peft.LoraConfig(r=1, lora_alpha=1, target_modules=names, **given)


def _adapter(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    if not hasattr(model, "add_adapter"):
        return NO_ADAPTERS
    plain, config = dequantize(copy.deepcopy(model)), adapter(model, init_lora_weights=False)
    made = []
    for one in (model, plain):
        torch.manual_seed(1)
        one.add_adapter(config)
        made.append(outputs(one, name))
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*made)):
        return "other output than beside plain layers"
    model.unload_lora()
    return same(outputs(model, name), expected)


def _merged(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    """Merging and starts that change weights are refused, and so is saving what could not be loaded."""
    if not hasattr(model, "add_adapter"):
        return NO_ADAPTERS
    if not refused(lambda: model.add_adapter(adapter(model, init_lora_weights="pissa"))):
        return "PiSSA starts"
    model.add_adapter(adapter(model, init_lora_weights=False))
    layers = [module for module in model.modules() if hasattr(module, "base_layer")]
    for merge in (model.fuse_lora, layers[0].merge, lambda: layers[-1].merge(safe_merge=True)):
        if not refused(merge):
            return "an adapter is merged"
    if not refused(lambda: model.save_pretrained(folder / "adapted")) or (folder / "adapted").exists():
        return "saved with an adapter"
    model.unload_lora()
    return same(outputs(model, name), expected)


def _fused(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    if not hasattr(model, "fuse_qkv_projections"):
        return "n/a: the class fuses nothing"
    before = sum(isinstance(module, QuantizedLayer) for module in model.modules())
    refused(model.fuse_qkv_projections)
    if sum(isinstance(module, QuantizedLayer) for module in model.modules()) != before:
        return "layers are unpacked"
    return same(outputs(model, name), expected)


def _averaged(model: Any, expected: Outputs, name: str, folder: Path) -> str:
    average = EMAModel(model.parameters(), model_cls=type(model), model_config=model.config)
    average.step(model.parameters())
    if not refused(lambda: average.save_pretrained(folder / "average")):
        return "an average is saved as a plain model"
    average.copy_to(model.parameters())
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
    "group offloaded": _grouped,
    "adapter": _adapter,
    "merging refused": _merged,
    "fused": _fused,
    "averaged": _averaged,
    "8-bit activations": _activations,
}
