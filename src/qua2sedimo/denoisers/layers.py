"""The weight layers of a denoiser: Linear and Conv1d/2d/3d modules, each weight tensor counted once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from qua2sedimo.denoisers.blocks import block_of
from qua2sedimo.denoisers.names import operation_type
from qua2sedimo.denoisers.offload import registered_hook, waiting_weight
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import STRICT

WEIGHT_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class WeightLayer:
    """A unit of quantization: a whole weight layer, or the part of one that reads one operand of a concatenation.

    ``name`` is the module's name, or ``MODULE[a:b]`` for a part. ``span`` is the part's range of input channels
    (dimension 1 of the weight), None for a whole layer. ``shape`` is the unit's own weight shape, output channels
    first. ``copies`` are other modules with the same weight and bias, which share the unit's option. ``positions`` is
    the number of tokens or pixels computed in the traced forward, over all samples, calls and copies; 0 if unknown.
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
        """Multiply-accumulate operations of the traced forward: number of weights times number of positions."""
        return self.weights * self.positions

    def part(self, start: int, stop: int) -> WeightLayer:
        """The part of this whole layer for input channels ``start`` to ``stop``."""
        shape = (self.shape[0], stop - start, *self.shape[2:])
        return replace(self, name=f"{self.module}[{start}:{stop}]", span=(start, stop), shape=shape)


def parse_unit(name: str) -> tuple[str, tuple[int, int] | None]:
    """(module, span) of a unit: ``"a.conv[0:320]"`` → ``("a.conv", (0, 320))``, ``"a.q"`` → ``("a.q", None)``."""
    found = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", name)
    return (found[1], (int(found[2]), int(found[3]))) if found else (name, None)


def weight_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Weight modules by name; of modules that share one weight tensor, only the first."""
    return {names[0]: denoiser.get_submodule(names[0]) for names in shared_modules(denoiser)}


def other_weights(denoiser: nn.Module) -> tuple[str, ...]:
    """Names of the modules with a weight of at least two dimensions that are no plain Linear or Conv layer, or share it
    with one that is none, as an output layer that is tied to the embeddings does."""
    others = _of_other_modules(denoiser)
    weights = ((name, getattr(m, "weight", None)) for name, m in denoiser.named_modules())
    return tuple(name for name, weight in weights if id(weight) in others and getattr(weight, "ndim", 0) > 1)


def _of_other_modules(denoiser: nn.Module) -> set[int]:
    """Identities of the weights of modules that are no plain Linear or Conv layers."""
    weights = (getattr(m, "weight", None) for m in denoiser.modules() if not _is_layer(m))
    return {id(weight) for weight in weights if isinstance(weight, nn.Parameter)}


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a Linear or Conv layer that computes as PyTorch's own does, or would if its weight were."""
    plain = next((cls for cls in WEIGHT_MODULES if isinstance(module, cls)), None)
    return plain is not None and not (overridden(type(module), plain) and not _foreign(module))


def overridden(cls: type[nn.Module], plain: type[nn.Module]) -> bool:
    """Whether a subclass of a plain layer has a forward pass of its own, as causal convolutions of video have, which
    pad their input: what such a layer multiplies is not what it is given."""
    return any(getattr(cls, name, None) != getattr(plain, name, None) for name in ("forward", "_conv_forward"))


def shared_modules(denoiser: nn.Module) -> list[tuple[str, ...]]:
    """Names of the weight modules in order, grouped by the weight tensor they share. Those that share it with a module
    of another kind, such as embeddings, are left out: its weight would change with theirs. So are layers whose class
    overrides the forward pass.

    Raises :class:`Qua2SeDiMoError` if the denoiser has none.
    """
    found: dict[int, list[str]] = {}
    others = _of_other_modules(denoiser)
    for name, module in denoiser.named_modules():
        if _is_layer(module) and id(module.weight) not in others:
            found.setdefault(id(module.weight), []).append(name)
    if not found:
        raise Qua2SeDiMoError(
            f"{type(denoiser).__name__} has no Linear or Conv layers to quantize",
            "Layers whose class has a forward pass of its own, as in autoencoders for video, are not quantized.",
        )
    return [tuple(names) for names in found.values()]


def weight_of(module: nn.Module) -> torch.Tensor:
    """The module's weight [out, in, …], detached; where it is offloaded, the one that is moved in for a call.

    Offloading replaces tensors, so a weight to be written is looked up each time.
    """
    waiting = waiting_weight(module)
    weight = module.weight if waiting is None else waiting
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def unit_weight(modules: Mapping[str, nn.Module], layer: WeightLayer) -> torch.Tensor:
    """The weight of a layer or part, as a view of shape ``layer.shape`` of the module's weight."""
    weight = weight_of(modules[layer.module])
    return weight if layer.span is None else weight[:, layer.span[0] : layer.span[1]]


def weight_layers(denoiser: nn.Module) -> dict[str, WeightLayer]:
    """All weight layers by name, uncut, with operation type, block and stage.

    Modules that share one weight tensor are one layer with ``copies``.
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
    """Raise :class:`Qua2SeDiMoError` if the denoiser is already quantized, is cast layer by layer, or has adapters."""
    name = type(denoiser).__name__
    if getattr(denoiser, "hf_quantizer", None) is not None or getattr(denoiser, "is_quantized", False):
        raise Qua2SeDiMoError(
            f"{name} is already quantized", "Load the unquantized checkpoint, without quantization_config."
        )
    cast = [place for place, module in denoiser.named_modules() if registered_hook(module, "layerwise_casting")]
    if cast:
        raise Qua2SeDiMoError(
            f"{name} is cast layer by layer: '{cast[0]}' stores its weights in another dtype than it computes in",
            "Load the pipeline again, without enable_layerwise_casting.",
        )
    wrapped = [place for place, m in denoiser.named_modules() if hasattr(m, "base_layer")]
    if wrapped:
        raise Qua2SeDiMoError(
            f"layer '{wrapped[0]}' is wrapped by an adapter (LoRA)",
            "Fuse or unload the adapters first: pipeline.fuse_lora() or pipeline.unload_lora_weights().",
        )
    packed = [place for place, m in denoiser.named_modules() if type(m).__module__.startswith("torch.ao.nn.")]
    if packed:  # such as DynamicQuantizedLinear, which is no Linear and would be left alone
        raise Qua2SeDiMoError(
            f"{name} is already quantized: '{packed[0]}' is a {type(denoiser.get_submodule(packed[0])).__name__} of "
            "torch.ao.quantization",
            "Start from the unquantized pipeline.",
        )
    for place, module in weight_modules(denoiser).items():
        found = _foreign(module)
        if found:
            raise Qua2SeDiMoError(
                f"{name} is already quantized: the weight of '{place}' is {found}",
                "Start from the unquantized pipeline, or, if this package packed it, qua2sedimo.dequantize(denoiser).",
            )


def _foreign(module: nn.Module) -> str:
    """What a module's weight is, if it is no plain parameter of floats of 16 bits or more; empty if it is one."""
    weight = module.weight
    if not isinstance(weight, nn.Parameter):
        return "not a parameter"
    if type(weight) is not nn.Parameter or type(weight.data) is not torch.Tensor:  # of bitsandbytes, gguf, torchao, …
        return f"a {type(weight if type(weight) is not nn.Parameter else weight.data).__name__}"
    if not weight.is_floating_point() or weight.element_size() < 2:
        return f"stored as {str(weight.dtype).removeprefix('torch.')}"
    return ""


def refuse_without_weights(denoiser: nn.Module) -> None:
    """Raise :class:`Qua2SeDiMoError` if a weight is on the meta device, where there are no values to quantize."""
    absent = [name for name, module in weight_modules(denoiser).items() if weight_of(module).is_meta]
    if absent:
        raise Qua2SeDiMoError(
            f"{type(denoiser).__name__} has no weights: '{absent[0]}' is on the meta device",
            "Load the checkpoint (from_pretrained, or a pipeline folder with its weights). "
            "`qua2sedimo inspect` needs no weights.",
        )
