"""The weight layers of a denoiser: Linear and Conv1d/2d/3d modules, each weight tensor once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from qua2sedimo.denoisers.blocks import block_of
from qua2sedimo.denoisers.names import operation_type
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import STRICT

WEIGHT_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class WeightLayer:
    """A weight layer, or a part of one, that gets an option of its own.

    ``module`` is the module's name; ``span`` the input channels of a part (dimension 1 of the weight), None for a whole
    layer; ``name`` is the module's name, for a part ``MODULE[a:b]``. ``shape`` is the unit's own weight shape, output
    channels first. ``copies`` are further modules with the same weight and bias: one choice holds for all.
    ``positions`` counts the outputs of the traced forward, tokens or pixels, over all samples, calls and copies; 0 if
    they were not counted.
    """

    name: str
    module: str
    span: tuple[int, int] | None
    shape: tuple[int, ...]
    kind: str
    operation: str
    block: str
    block_index: int | None
    stage: str
    copies: tuple[str, ...] = ()
    positions: int = 0

    __pydantic_config__ = STRICT  # as it stands in graph.json

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of the traced forward: every weight once a position."""
        return self.weights * self.positions

    def part(self, start: int, stop: int) -> WeightLayer:
        """The part of this whole layer that reads input channels ``start`` to ``stop``."""
        shape = (self.shape[0], stop - start, *self.shape[2:])
        return replace(self, name=f"{self.module}[{start}:{stop}]", span=(start, stop), shape=shape)


def parse_unit(name: str) -> tuple[str, tuple[int, int] | None]:
    """Module name and span of a unit: ``"a.conv[0:320]"`` → ``("a.conv", (0, 320))``, ``"a.q"`` → ``("a.q", None)``."""
    found = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", name)
    return (found[1], (int(found[2]), int(found[3]))) if found else (name, None)


def weight_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Weight modules by name; a weight tensor shared by several modules belongs to the first only."""
    return {names[0]: denoiser.get_submodule(names[0]) for names in shared_modules(denoiser)}


def shared_modules(denoiser: nn.Module) -> list[tuple[str, ...]]:
    """Names of the weight modules in order, those that share one weight tensor together.

    Raises :class:`Qua2SeDiMoError` if there is none.
    """
    found: dict[int, list[str]] = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, WEIGHT_MODULES):
            found.setdefault(id(module.weight), []).append(name)
    if not found:
        raise Qua2SeDiMoError(f"{type(denoiser).__name__} has no Linear or Conv layers to quantize")
    return [tuple(names) for names in found.values()]


def weight_of(module: nn.Module) -> torch.Tensor:
    """The module's weight [out, in, …] as a plain tensor."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def unit_weight(modules: Mapping[str, nn.Module], layer: WeightLayer) -> torch.Tensor:
    """The weight of a layer or part, of shape ``layer.shape``: a view of the module's weight."""
    weight = weight_of(modules[layer.module])
    return weight if layer.span is None else weight[:, layer.span[0] : layer.span[1]]


def weight_layers(denoiser: nn.Module) -> dict[str, WeightLayer]:
    """Every weight layer by name, whole, with its operation type, block and stage.

    Modules that share one weight tensor are one layer with copies.
    """
    refuse_unsuitable(denoiser)
    layers = {}
    for name, *sharing in shared_modules(denoiser):
        module = denoiser.get_submodule(name)
        place = block_of(name, denoiser)
        layers[name] = WeightLayer(
            name=name,
            module=name,
            span=None,
            shape=tuple(weight_of(module).shape),
            kind=type(module).__name__,
            operation=operation_type(name, denoiser),
            block=place.block,
            block_index=place.index,
            stage=place.stage,
            copies=tuple(sharing),
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


def refuse_without_weights(denoiser: nn.Module) -> None:
    """Raise if a weight layer has a shape but no values (meta device): nothing could be quantized."""
    absent = [name for name, module in weight_modules(denoiser).items() if weight_of(module).is_meta]
    if absent:
        raise Qua2SeDiMoError(
            f"{type(denoiser).__name__} has no weights: '{absent[0]}' is on the meta device",
            "Load the checkpoint (from_pretrained, or a pipeline folder with its weights). "
            "`qua2sedimo inspect` works without.",
        )
