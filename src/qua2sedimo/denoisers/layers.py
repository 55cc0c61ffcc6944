"""The weight layers of a denoiser: Linear and Conv1d/2d/3d modules, each weight tensor once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from qua2sedimo.denoisers.names import block_of, operation_type
from qua2sedimo.errors import Qua2SeDiMoError

WEIGHT_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class WeightLayer:
    """A weight layer: module name, weight shape (output channels first), operation type, block, stage."""

    name: str
    shape: tuple[int, ...]
    kind: str
    operation: str
    block: str
    block_index: int | None
    stage: str

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


def weight_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Weight modules by name; a weight tensor shared by several modules belongs to the first only."""
    seen: set[int] = set()
    found: dict[str, nn.Module] = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, WEIGHT_MODULES) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module
    if not found:
        raise Qua2SeDiMoError(f"{type(denoiser).__name__} has no Linear or Conv layers to quantize")
    return found


def weight_of(module: nn.Module) -> torch.Tensor:
    """The module's weight as a plain tensor."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def weight_layers(denoiser: nn.Module) -> dict[str, WeightLayer]:
    """Every weight layer by name, with its operation type, block and stage."""
    refuse_unsuitable(denoiser)
    layers = {}
    for name, module in weight_modules(denoiser).items():
        place = block_of(name)
        layers[name] = WeightLayer(
            name=name,
            shape=tuple(weight_of(module).shape),
            kind=type(module).__name__,
            operation=operation_type(name, denoiser),
            block=place.block,
            block_index=place.index,
            stage=place.stage,
        )
    return layers


def refuse_unsuitable(denoiser: nn.Module) -> None:
    """Raise on denoisers whose layers are not plain weights: quantized already, or wrapped by adapters."""
    if getattr(denoiser, "hf_quantizer", None) is not None or getattr(denoiser, "is_quantized", False):
        raise Qua2SeDiMoError(
            f"{type(denoiser).__name__} is already quantized", "Load the unquantized checkpoint instead."
        )
    computed = [name for name, m in weight_modules(denoiser).items() if not isinstance(m.weight, nn.Parameter)]
    if computed:
        raise Qua2SeDiMoError(
            f"{type(denoiser).__name__} is already quantized: '{computed[0]}' has no weight of its own",
            "Start from the unquantized pipeline, or call qua2sedimo.dequantize(denoiser).",
        )
    wrapped = [name for name, m in denoiser.named_modules() if hasattr(m, "base_layer")]
    if wrapped:
        raise Qua2SeDiMoError(
            f"layer '{wrapped[0]}' is wrapped by an adapter (LoRA)",
            "Fuse or unload the adapters first: pipeline.fuse_lora() or pipeline.unload_lora_weights().",
        )
