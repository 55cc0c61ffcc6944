"""Linear and convolution layers that hold a quantized weight and dequantize it each time it is used.

The 16-bit float parameters of a method are kept as int16 *bit patterns*, in memory and on disk. A cast of
the model (``.half()``, ``.to(torch.float32)``, ``torch_dtype=`` of ``from_pretrained``, layerwise casting)
changes every float tensor it meets; a scale rounded that way would give another weight than the measured one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, packed_length, stored_dtype

_LINEAR = ("in_features", "out_features")
_CONV = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("transposed", "output_padding", "padding_mode", "_reversed_padding_repeated_twice"),
)


class QuantizedLayer(nn.Module):
    """What the quantized layers share: packed codes and 16-bit parameters as buffers, ``weight`` computed.

    ``codes`` is uint8 [⌈N·bits/8⌉]; the other buffers are the method's parameters (``scale`` and ``zero``, or
    ``codebook``) as int16 bit patterns. ``bias`` is an ordinary parameter. :meth:`quantized_weight` gives
    them back as the value they came from.
    """

    method: str
    bits: int
    shape: tuple[int, ...]
    weight_dtype: torch.dtype  # of the value; the compute dtype follows the model instead
    bias: nn.Parameter | None
    codes: torch.Tensor
    _compute: torch.Tensor

    def quantized_weight(self) -> QuantizedWeight:
        """The stored weight as a value: views of the buffers, nothing copied."""
        parameters = {
            name: getattr(self, name).view(dtype)
            for name, dtype in METHODS[self.method].parameter_dtypes(stored_dtype(self.weight_dtype)).items()
        }
        return QuantizedWeight(self.method, self.bits, self.shape, self.weight_dtype, self.codes, parameters)

    def packed_names(self) -> tuple[str, ...]:
        """Names of the buffers that hold the weight."""
        return tuple(packed_layout(self.method, self.bits, self.shape))

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype ``weight`` is given in: the bias's, or without one the last the layer was cast to."""
        return self._compute.dtype if self.bias is None else self.bias.dtype

    def compute_in(self, dtype: torch.dtype) -> None:
        """Cast only the empty tensor that stands for the compute dtype; the bias is loaded in its own."""
        self._compute = self._compute.to(dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight in the compute dtype, computed at each access; writing to it is lost."""
        out = torch.empty(self.shape, dtype=self.compute_dtype, device=self.codes.device)
        return self.quantized_weight().dequantize(out)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.method}-{self.bits}"


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc,override]
    """A :class:`torch.nn.Linear` whose weight is stored quantized."""


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):  # type: ignore[misc,override]
    """A :class:`torch.nn.Conv1d` whose weight is stored quantized."""


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc,override]
    """A :class:`torch.nn.Conv2d` whose weight is stored quantized."""


class QuantizedConv3d(QuantizedLayer, nn.Conv3d):  # type: ignore[misc,override]
    """A :class:`torch.nn.Conv3d` whose weight is stored quantized."""


_QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
}


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Linear, Conv1d, Conv2d or Conv3d: whose computation ``module`` performs.

    Raises :class:`Qua2SeDiMoError` if it is none of them, or a subclass with a forward pass of its own, which
    a replacement would silently drop.
    """
    for plain in _QUANTIZED:
        if isinstance(module, plain):
            own = [f for f in ("forward", "_conv_forward") if getattr(type(module), f, None) != getattr(plain, f, None)]
            if not own:
                return plain
            raise Qua2SeDiMoError(
                f"a {type(module).__name__} computes otherwise than the {plain.__name__} it derives from",
                "Leave this layer unquantized.",
            )
    raise Qua2SeDiMoError(f"expected a Linear or Conv1d/2d/3d layer, got {type(module).__name__}")


def quantized_module(module: nn.Module, value: QuantizedWeight) -> QuantizedLayer:
    """The layer that computes what ``module`` does, with ``value`` for its weight.

    It shares the bias with ``module``, lives on its device, and computes in its dtype. Raises
    :class:`Qua2SeDiMoError` if the value's shape is not the weight's, or its tensors are not its method's.
    """
    shape = tuple(_weight(module).shape)
    if tuple(value.shape) != shape:
        raise Qua2SeDiMoError(f"quantized weight has shape {list(value.shape)}, the layer's is {list(shape)}")
    quantized = empty_quantized_module(module, value.method, value.bits, value.dtype)
    device = _weight(module).device
    for name, tensor in packed_tensors(value).items():
        expected = getattr(quantized, name)
        if tensor.dtype != expected.dtype or tensor.shape != expected.shape:
            raise Qua2SeDiMoError(
                f"'{name}' of {value.method}-{value.bits} for a weight {list(shape)}: expected "
                f"{expected.dtype} {list(expected.shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
        setattr(quantized, name, tensor if device.type == "meta" else tensor.to(device))
    return quantized


def empty_quantized_module(module: nn.Module, method: str, bits: int, dtype: torch.dtype) -> QuantizedLayer:
    """A quantized layer in place of ``module`` whose packed buffers are on the meta device, to be loaded.

    ``dtype`` is that of the quantized weight (:attr:`QuantizedWeight.dtype`); all shapes follow from these
    arguments. No weight is allocated.
    """
    Option(method, bits)  # raises on what does not exist
    plain = plain_class(module)
    weight = _weight(module)
    quantized = _bare(_QUANTIZED[plain], module)
    quantized.method, quantized.bits = method, bits
    quantized.shape, quantized.weight_dtype = tuple(weight.shape), dtype
    for name, (stored, shape) in packed_layout(method, bits, quantized.shape).items():
        quantized.register_buffer(name, torch.empty(shape, dtype=stored, device="meta"))
    # An empty tensor follows every cast of the model as a bias would. Never on meta: nothing would load it.
    device = "cpu" if weight.device.type == "meta" else weight.device
    marker = torch.empty(0, dtype=weight.dtype, device=device)
    quantized.register_buffer("_compute", marker, persistent=False)
    return quantized


def packed_layout(method: str, bits: int, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name → (dtype, shape) of the tensors stored for a weight of this shape."""
    parameters = METHODS[method].parameter_shapes(shape, bits)
    codes = (packed_length(math.prod(shape), bits),)
    return {"codes": (torch.uint8, codes), **{name: (torch.int16, size) for name, size in parameters.items()}}


def packed_tensors(value: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors stored for ``value``, by buffer name: codes, and parameters as int16 bit patterns."""
    patterns = {name: tensor.contiguous().view(torch.int16) for name, tensor in value.parameters.items()}
    return {"codes": value.codes, **patterns}


def replace_layers(denoiser: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Put ``layers`` in place of the modules of these names (and of their other names, if shared); returns
    ``denoiser``, changed. Raises :class:`Qua2SeDiMoError` on a name it does not have.
    """
    modules = dict(denoiser.named_modules(remove_duplicate=False))
    unknown = [name for name in layers if not name or name not in modules]
    if unknown:
        raise Qua2SeDiMoError(f"{type(denoiser).__name__} has no layer '{unknown[0]}'")
    replacements = {id(modules[name]): layer for name, layer in layers.items()}
    for name, module in modules.items():
        if id(module) in replacements:
            parent, _, child = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, replacements[id(module)])
    if hasattr(denoiser, "fuse_lora") and any(isinstance(layer, QuantizedLayer) for layer in layers.values()):
        object.__setattr__(denoiser, "fuse_lora", _refuse_fusing)
    return denoiser


def dequantize(model: nn.Module) -> nn.Module:
    """Put plain Linear and Conv layers with the dequantized weights back; returns ``model``, changed.

    A model loaded from a packed checkpoint is an ordinary diffusers model afterwards.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer)}
    replace_layers(model, {name: _plain_module(layer) for name, layer in layers.items()})
    for attribute in ("fuse_lora", "hf_quantizer", "quantization_method"):
        model.__dict__.pop(attribute, None)
    if getattr(model, "is_quantized", False):
        model.is_quantized = False  # type: ignore[assignment]
    config = model.__dict__.get("_internal_dict")
    if config is not None and "quantization_config" in config:
        kept = {key: entry for key, entry in config.items() if key != "quantization_config"}
        model.__dict__["_internal_dict"] = type(config)(kept)
    return model


def _plain_module(layer: QuantizedLayer) -> nn.Module:
    plain = _bare(plain_class(layer), layer)
    plain.weight = nn.Parameter(layer.weight)
    return plain


def _bare(cls: type[Any], module: nn.Module) -> Any:
    """A ``cls`` with the hyperparameters, the bias and the mode of ``module`` and nothing else allocated."""
    bare: Any = object.__new__(cls)
    nn.Module.__init__(bare)
    for name in _LINEAR if isinstance(module, nn.Linear) else _CONV:
        setattr(bare, name, getattr(module, name))
    bare.register_parameter("bias", module.bias)
    return bare.train(module.training)


def _weight(module: nn.Module) -> torch.Tensor:
    plain_class(module)
    assert isinstance(module.weight, torch.Tensor)
    return module.weight


def _refuse_fusing(*_: object, **__: object) -> NoReturn:
    """PEFT adds its update to ``weight.data``; added to a computed weight it would be lost without a word."""
    raise Qua2SeDiMoError(
        "an adapter cannot be fused into packed weights",
        "Use it unfused, or call qua2sedimo.runtime.dequantize(model) first.",
    )
