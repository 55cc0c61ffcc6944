"""Other tools that quantize a denoiser, each through its public API, as benchmarks/peers.py compares them.

Each gets a denoiser in fp16, as its checkpoint is, and quantizes it in place. What it would save is counted, and what
its weights then stand for is read back by the tool itself. The tools are optional: ``pip install 'qua2sedimo[peers]'``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from qua2sedimo import Study
from qua2sedimo.bank import stored_weight
from qua2sedimo.denoisers import unit_weight, weight_modules
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, dequantize_weight
from qua2sedimo.quantizers.moment import Moment
from qua2sedimo.statistics import RecordedCall

NEAREST = "ours, nearest"
#: Tool → the package whose version is recorded.
PACKAGES = {
    "SDNQ": "sdnq", "quanto": "optimum-quanto", "torchao": "torchao", "bitsandbytes": "bitsandbytes",
    "HQQ": "hqq", "GGUF": "gguf", NEAREST: "qua2sedimo",
}  # fmt: skip
_HALF = 2  # bytes of a number in 16 bits

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """What is quantized: a denoiser of its own in fp16, and a study of it that says what its layers are.

    ``moment`` gives the second moment of a layer's inputs to methods that need one, ``calls`` calls at all time steps.
    """

    denoiser: nn.Module
    study: Study
    moment: Callable[[str], Moment]
    calls: Callable[[], Sequence[RecordedCall]] = tuple

    @property
    def has_convolutions(self) -> bool:
        """Whether it has more of them than the patch embedding of a transformer."""
        return sum(isinstance(m, nn.Conv2d) for m in self.denoiser.modules()) > 1


@dataclass(frozen=True)
class Saved:
    """A quantized denoiser: bytes of everything that its tool saves, and the weights it stands for, by parameter."""

    nbytes: int
    weights: Weights


@dataclass(frozen=True)
class Setting:
    """One way to use a tool; ``recommended``: as its own pages show it."""

    tool: str
    name: str
    quantize: Callable[[Subject], Saved]
    recommended: bool = False


def settings(subject: Subject) -> list[Setting]:
    """Every way that is compared; convolutions are quantized where there are some and the tool can."""
    convolutions = subject.has_convolutions
    return [
        *_nearest(), *_sdnq(convolutions), *_quanto(), *_torchao(convolutions), *_bitsandbytes(), *_hqq(), *_gguf()
    ]  # fmt: skip


def versions() -> dict[str, str]:
    """The installed version of every tool."""
    return {tool: _version(package) for tool, package in PACKAGES.items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


# Bytes and weights ---------------------------------------------------------------------------------------------------


def stored_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of the tensors of a state dict, those inside quantized tensors too; one that occurs twice counts once."""
    sizes = {}
    for value in state.values():
        for plain in _plain(value):
            sizes[plain.data_ptr(), plain.dtype, plain.shape] = plain.numel() * plain.element_size()
    return sum(sizes.values())


def _plain(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a value consists of: itself, or those inside a tensor of a class of its own."""
    if not isinstance(value, torch.Tensor):
        return
    value = value.data if isinstance(value, nn.Parameter) else value
    if not hasattr(value, "__tensor_flatten__"):
        if value.numel():
            yield value
        return
    for name in value.__tensor_flatten__()[0]:
        yield from _plain(getattr(value, name))


def full_bytes(denoiser: nn.Module) -> int:
    """Bytes of a denoiser in 16 bits."""
    return _HALF * sum(tensor.numel() for tensor in denoiser.state_dict().values())


def _changed(denoiser: nn.Module, weight_of: Callable[[nn.Module], torch.Tensor | None]) -> Weights:
    """The weights of layers that were quantized, those for which there is one."""
    found = {f"{name}.weight": weight_of(module) for name, module in denoiser.named_modules()}
    return {name: weight.detach().float() for name, weight in found.items() if weight is not None}


def _replace_linear(denoiser: nn.Module, made: Callable[[nn.Linear], nn.Module | None]) -> None:
    """Put another module in place of every Linear layer for which there is one."""
    for name, module in list(denoiser.named_modules()):
        other = made(module) if type(module) is nn.Linear else None
        if other is not None:
            parent, _, child = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, other)


# This package, nearest rounding --------------------------------------------------------------------------------------


def _nearest() -> Iterable[Setting]:
    for bits in (2, 3, 4, 5, 6, 8):
        option = Option("uaq", bits)
        yield Setting(NEAREST, str(option), partial(_uniform, option=option), recommended=bits == 4)


def _uniform(subject: Subject, option: Option) -> Saved:
    """Every layer that this package quantizes gets the same option, rounded to the nearest level."""
    shapes = subject.study.workspace.candidates.shapes
    size = packed_bytes(subject, sum(option.nbytes(shape) for shape in shapes.values()))
    subject.denoiser.float()
    for weight in units(subject).values():
        dequantize_weight(METHODS[option.method].quantize(stored_weight(weight), [option.number])[0], weight)
    return Saved(size, written(subject))


def units(subject: Subject) -> Weights:
    """The weights of the layers that this package quantizes, or of parts of them, as they lie in the denoiser."""
    inside, modules = subject.study.workspace, weight_modules(subject.denoiser)
    return {name: unit_weight(modules, inside.graph.layers[name]) for name in inside.candidates.layers}


def written(subject: Subject) -> Weights:
    """The same after they were written, by parameter and whole, also of modules that hold copies of them."""
    found: Weights = {}
    for module, copies in _modules(subject).items():
        weight = subject.denoiser.get_submodule(module).weight.data.float()
        found |= {f"{name}.weight": weight for name in (module, *copies)}
    return found


def _modules(subject: Subject) -> dict[str, tuple[str, ...]]:
    """Module that this package quantizes → other modules that hold the same numbers, which are stored once."""
    inside = subject.study.workspace
    layers = [inside.graph.layers[name] for name in inside.candidates.layers]
    return {layer.module: layer.copies for layer in layers}


def packed_bytes(subject: Subject, layers: int) -> int:
    """Bytes of the denoiser if those layers that this package quantizes take ``layers`` bytes: the rest has 16 bits."""
    quantized = {f"{module}.weight" for module in _modules(subject)}
    copies = tuple(f"{name}." for of in _modules(subject).values() for name in of)
    rest = {name: tensor for name, tensor in subject.denoiser.state_dict().items() if name not in quantized}
    return layers + _HALF * sum(tensor.numel() for name, tensor in rest.items() if not name.startswith(copies))


# SDNQ ----------------------------------------------------------------------------------------------------------------

#: What is added to a width: name → options of SDNQConfig. Scales are fp32 unless ``dequantize_fp32`` is False.
_SDNQ_WAYS: dict[str, dict[str, Any]] = {
    "fp16 scales": {"dequantize_fp32": False},
    "rows, fp16 scales": {"group_size": -1, "dequantize_fp32": False},
    "groups of 32, fp16 scales": {"group_size": 32, "dequantize_fp32": False},
    "SVD": {"use_svd": True},
    "SVD of rank 8, fp16 scales": {"use_svd": True, "svd_rank": 8, "dequantize_fp32": False},
    "Hadamard, fp16 scales": {"use_hadamard": True, "dequantize_fp32": False},
    "dynamic": {"use_dynamic_quantization": True},
    "dynamic, SVD, fp16 scales": {"use_dynamic_quantization": True, "use_svd": True, "dequantize_fp32": False},
    "codebook, fp16 scales": {"use_codebook": True, "dequantize_fp32": False},
    "codebook, Hadamard, fp16 scales": {"use_codebook": True, "use_hadamard": True, "dequantize_fp32": False},
}
_SDNQ_SMALL = 4  # bits


def _sdnq(convolutions: bool) -> Iterable[Setting]:
    """Every width as it is, small ones in every other way too."""
    yield Setting("SDNQ", "int8", partial(_by_sdnq, weights_dtype="int8"), recommended=True)
    if convolutions:
        yield Setting("SDNQ", "uint4, convolutions left", partial(_by_sdnq, weights_dtype="uint4"), recommended=True)
    for bits in range(2, 9):
        for name, options in {"": {}, **(_SDNQ_WAYS if bits <= _SDNQ_SMALL else {})}.items():
            said = f"uint{bits}, {name}" if name else f"uint{bits}"
            way = partial(_by_sdnq, weights_dtype=f"uint{bits}", quant_conv=convolutions, **options)
            yield Setting("SDNQ", said, way, recommended=name == "dynamic" or not (name or convolutions))


def _by_sdnq(subject: Subject, **options: Any) -> Saved:
    os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")  # the same numbers, and no compiler at work
    from sdnq import sdnq_post_load_quant
    from sdnq.dequantizer import dequantize_sdnq_model

    before = {name: weight.clone() for name, weight in subject.denoiser.state_dict().items()}
    model = sdnq_post_load_quant(subject.denoiser, use_quantized_matmul=False, **options)
    nbytes = stored_bytes(model.state_dict())
    after = dequantize_sdnq_model(model).state_dict()
    return Saved(nbytes, {n: w.float() for n, w in after.items() if not torch.equal(w, before[n])})


# optimum-quanto ------------------------------------------------------------------------------------------------------


def _quanto() -> Iterable[Setting]:
    for name in ("qint2", "qint4", "qint8", "qfloat8"):
        yield Setting("quanto", name, partial(_by_quanto, name=name), recommended=True)
    for name in ("qint2", "qint4"):
        yield Setting("quanto", f"{name}, HQQ", partial(_by_quanto, name=name, hqq=True))


def _by_quanto(subject: Subject, name: str, hqq: bool = False) -> Saved:
    from optimum import quanto
    from optimum.quanto.nn import QModuleMixin

    quanto.quantize(subject.denoiser, weights=quanto.qtypes[name], optimizer=quanto.HqqOptimizer() if hqq else None)
    quanto.freeze(subject.denoiser)

    def weight_of(module: nn.Module) -> torch.Tensor | None:
        return module.weight.dequantize() if isinstance(module, QModuleMixin) and module.frozen else None

    return Saved(stored_bytes(subject.denoiser.state_dict()), _changed(subject.denoiser, weight_of))


# torchao -------------------------------------------------------------------------------------------------------------


def _torchao(convolutions: bool) -> Iterable[Setting]:
    yield Setting("torchao", "Int8WeightOnly", partial(_by_torchao, config=_int8), recommended=True)
    yield Setting("torchao", "Int4WeightOnly", partial(_by_torchao, config=_int4), recommended=True)
    prototype = partial(_by_torchao, config=_int4_prototype, rows=16)
    yield Setting("torchao", "PrototypeInt4WeightOnly", prototype)
    yield Setting("torchao", "GPTQ, int4", partial(_by_torchao, config=_int4_gptq))
    for bits in (3, 4, 6):  # all are saved in 8 bits a weight
        config = partial(_intx, bits=bits, group=32)
        way = partial(_by_torchao, config=config, convolutions=convolutions)
        yield Setting("torchao", f"IntxWeightOnly int{bits}, groups of 32", way)


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _int4() -> Any:
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size=32)


def _int4_prototype() -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=32)


def _int4_gptq() -> Any:
    from torchao.prototype.gptq import GPTQConfig

    return GPTQConfig(step="observe", base_config=_int4())


def _intx(bits: int, group: int) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType

    dtype = getattr(torch, f"int{bits}")
    return IntxWeightOnlyConfig(dtype, granularity=PerGroup(group), mapping_type=MappingType.ASYMMETRIC)


def _by_torchao(subject: Subject, config: Callable[[], Any], convolutions: bool = False, rows: int = 1) -> Saved:
    """Layers whose output channels are a multiple of ``rows``, and whose inputs are one of the group's size."""
    from torchao.quantization import quantize_

    made = config()
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    group = getattr(made, "granularity", None)
    size = getattr(group, "group_size", 1)

    def takes(module: nn.Module, _name: str) -> bool:
        return isinstance(module, kinds) and module.weight.shape[0] % rows == 0 and module.weight.shape[1] % size == 0

    quantize_(subject.denoiser, made, filter_fn=takes)

    def weight_of(module: nn.Module) -> torch.Tensor | None:
        weight = getattr(module, "weight", None)
        if not hasattr(getattr(weight, "data", None), "__tensor_flatten__"):
            return None
        try:
            return weight.dequantize()
        except NotImplementedError:  # packed for a kernel: what it makes of one input at a time
            return nn.functional.linear(torch.eye(weight.shape[1], dtype=weight.dtype), weight).T

    return Saved(stored_bytes(subject.denoiser.state_dict()), _changed(subject.denoiser, weight_of))


# bitsandbytes --------------------------------------------------------------------------------------------------------


def _bitsandbytes() -> Iterable[Setting]:
    for kind in ("nf4", "fp4"):
        yield Setting("bitsandbytes", kind, partial(_by_bitsandbytes, kind=kind), recommended=kind == "nf4")
        twice = partial(_by_bitsandbytes, kind=kind, compress_statistics=True)
        yield Setting("bitsandbytes", f"{kind}, double quantization", twice)
    yield Setting("bitsandbytes", "LLM.int8", _by_bitsandbytes_int8)


def _by_bitsandbytes(subject: Subject, kind: str, compress_statistics: bool = False) -> Saved:
    import bitsandbytes as bnb

    def made(layer: nn.Linear) -> nn.Module:
        has_bias = layer.bias is not None
        other = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, has_bias, torch.float16, compress_statistics, kind
        )
        other.load_state_dict(layer.state_dict())
        return other.to("cpu")

    _replace_linear(subject.denoiser, made)

    def weight_of(module: nn.Module) -> torch.Tensor | None:
        if not isinstance(module, bnb.nn.Linear4bit):
            return None
        return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)

    return Saved(stored_bytes(subject.denoiser.state_dict()), _changed(subject.denoiser, weight_of))


def _by_bitsandbytes_int8(subject: Subject) -> Saved:
    import bitsandbytes as bnb

    def made(layer: nn.Linear) -> nn.Module:
        other = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, False)
        other.load_state_dict(layer.state_dict())
        return other.to("cpu")

    _replace_linear(subject.denoiser, made)

    def weight_of(module: nn.Module) -> torch.Tensor | None:
        if not isinstance(module, bnb.nn.Linear8bitLt):
            return None
        return bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)

    return Saved(stored_bytes(subject.denoiser.state_dict()), _changed(subject.denoiser, weight_of))


# HQQ -----------------------------------------------------------------------------------------------------------------


def _hqq() -> Iterable[Setting]:
    for bits in (2, 3, 4, 8):  # 5 and 6 bits are saved in 8
        for group, axis in ((64, 1), (64, 0), (32, 1), (16, 1)):
            if bits <= 4 or (group, axis) == (64, 1):
                way = partial(_by_hqq, bits=bits, group=group, axis=axis)
                name = f"{bits} bits, groups of {group}{', axis 0' if axis == 0 else ''}"
                yield Setting("HQQ", name, way, recommended=(group, axis) == (64, 1))


def _by_hqq(subject: Subject, bits: int, group: int, axis: int) -> Saved:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def made(layer: nn.Linear) -> nn.Module | None:
        if layer.weight.numel() % group:
            return None
        config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
        return HQQLinear(layer, config, compute_dtype=torch.float16, device="cpu")

    _replace_linear(subject.denoiser, made)

    def weight_of(module: nn.Module) -> torch.Tensor | None:
        return module.dequantize() if isinstance(module, HQQLinear) else None

    return Saved(stored_bytes(subject.denoiser.state_dict()), _changed(subject.denoiser, weight_of))


# GGUF ----------------------------------------------------------------------------------------------------------------


def _gguf() -> Iterable[Setting]:
    for name in ("Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):  # K types have no encoder in the package
        yield Setting("GGUF", name, partial(_by_gguf, name=name), recommended=True)


def _by_gguf(subject: Subject, name: str) -> Saved:
    """Linear layers with rows of whole blocks, as programs that read GGUF files expect; the rest stays in 16 bits."""
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    weights: Weights = {}
    nbytes = full_bytes(subject.denoiser)
    for layer, module in subject.denoiser.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % block == 0:
            blocks = gguf.quants.quantize(module.weight.data.float().numpy(), kind)
            weights[f"{layer}.weight"] = torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy())
            nbytes += blocks.nbytes - _HALF * module.weight.numel()
    return Saved(nbytes, weights)
