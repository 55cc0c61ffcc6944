"""Linear and convolution layers that store a packed quantized weight and dequantize it at every use.

Packed tensors are parameters without gradients, not buffers: offloading layer by layer, by groups with a stream, and by
device maps moves all parameters, but leaves buffers on the device.

A method's 16-bit float parameters are stored as int16 *bit patterns*, in memory and on disk, because a cast of the
model (``.half()``, ``.to(torch.float32)``, ``torch_dtype=`` of ``from_pretrained``, layerwise casting) changes every
float tensor, and a rounded scale would give another weight than the one that was measured.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from qua2sedimo.denoisers.layers import overridden
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option
from qua2sedimo.quantizers import (
    METHODS,
    LowRank,
    QuantizedWeight,
    dequantize_traceable,
    dequantize_weight,
    stored_dtype,
)
from qua2sedimo.runtime.computed import ComputedWeight, PackedMetadata, refuse_writing
from qua2sedimo.runtime.integer import integer_levels, integer_linear

DAMAGED = "The checkpoint's config.json is damaged: download it or export it again."
_LINEAR = ("in_features", "out_features")
_CONV = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("transposed", "output_padding", "padding_mode", "_reversed_padding_repeated_twice"),
)


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Storage:
    """How a weight is stored: its option and the dtype of its dequantized values, such as ``"uaq-4/float16"``."""

    option: Option
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.option}/{str(self.dtype).removeprefix('torch.')}"

    @classmethod
    def of(cls, value: QuantizedWeight) -> Storage:
        """The storage of a quantized weight."""
        return cls(Option(value.method, value.number), value.dtype)

    @classmethod
    def parse(cls, text: object) -> Storage:
        """Parse text such as ``"uaq-4/float16"``; raises :class:`Qua2SeDiMoError` on any other form."""
        option, _, dtype = text.partition("/") if isinstance(text, str) else ("", "", "")
        if dtype not in _DTYPES:
            raise Qua2SeDiMoError(f"quantization_config: {text!r} is not of the form METHOD-BITS/DTYPE", DAMAGED)
        return cls(Option.parse(option), _DTYPES[dtype])


@dataclass(frozen=True)
class Part:
    """A part of a layer's weight: its range of input channels ``span`` (None: all), and how it is stored."""

    span: tuple[int, int] | None
    storage: Storage

    @property
    def prefix(self) -> str:
        """Prefix of the names of the part's buffers."""
        return "" if self.span is None else f"part{self.span[0]}_"

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The part's shape, given the shape of the whole weight."""
        return whole if self.span is None else (whole[0], self.span[1] - self.span[0], *whole[2:])

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """This part of a whole weight [out, in, …], as a view."""
        return weight if self.span is None else weight[:, self.span[0] : self.span[1]]

    def layout(self, whole: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name → (dtype, shape) of the tensors stored for this part of a weight of shape ``whole``."""
        stored = packed_layout(self.storage.option, self.shape(whole))
        return {self.prefix + name: entry for name, entry in stored.items()}


class QuantizedLayer(nn.Module):
    """Base of the quantized layers: packed codes and 16-bit parameters are stored, ``weight`` is computed.

    ``codes`` is uint8 [⌈N·bits/8⌉]; the other tensors are the method's parameters (``scale`` and ``zero``, or
    ``codebook``) as int16 bit patterns. A layer whose input is a concatenation has several ``parts``, each with its own
    tensors (``part320_codes`` …). All are torch parameters without gradients; ``bias`` is an ordinary parameter, and
    the first, because many programs take the dtype of a module from its first parameter.

    A ``lowrank`` layer stores the codes of both factors and ``first``, ``scale_in`` and ``scale_out``; a block type of
    GGUF ``d``, maybe ``m`` or ``dmin``, and packed ``scales``.
    """

    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    bias: nn.Parameter | None
    _compute: torch.Tensor

    def __new__(cls, *given: Any, **named: Any) -> Any:
        """With arguments, a plain layer: PEFT makes the layers of an adapter with the class of the layer beside them.

        Quantized layers are made by :func:`quantized_module`, and copied without arguments.
        """
        if given or named:
            plain = next(plain for plain, quantized in _QUANTIZED.items() if issubclass(cls, quantized))
            return plain(*given, **named)
        return super().__new__(cls)

    def quantized_weights(self) -> list[QuantizedWeight]:
        """The stored weight, one value per part, as views of the buffers."""
        return [self._value(part) for part in self.parts]

    def _value(self, part: Part) -> QuantizedWeight:
        option, dtype = part.storage.option, part.storage.dtype  # the stored dtype; the compute dtype follows the model
        method, shape = METHODS[option.method], part.shape(self.shape)
        dtypes = method.parameter_dtypes(stored_dtype(dtype))
        parameters = {
            name: getattr(self, part.prefix + name).view(dtypes[name])
            for name in method.parameter_shapes(shape, option.number)
        }
        codes = getattr(self, f"{part.prefix}codes")
        return QuantizedWeight(option.method, option.number, shape, dtype, codes, parameters)

    def packed_names(self) -> tuple[str, ...]:
        """Names of the tensors with the packed weight."""
        return tuple(name for part in self.parts for name in part.layout(self.shape))

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of ``weight``: that of the bias or, without a bias, the one the layer was last cast to."""
        return self._compute.dtype if self.bias is None else self.bias.dtype

    def compute_in(self, dtype: torch.dtype) -> None:
        """Set the compute dtype of a layer without loaded tensors; the bias is loaded in its own dtype."""
        self._compute = self._compute.to(dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight in the compute dtype, computed at every access.

        Writes raise :class:`Qua2SeDiMoError`. Without loaded tensors it is a tensor on the meta device.
        """
        if torch.compiler.is_compiling():
            parts = [dequantize_traceable(self._value(part), self.compute_dtype) for part in self.parts]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        device = getattr(self, f"{self.parts[0].prefix}codes").device
        whole = torch.empty(self.shape, dtype=self.compute_dtype, device=device)
        if device.type != "meta":
            for part in self.parts:
                dequantize_weight(self._value(part), part.of(whole))
        return whole.as_subclass(ComputedWeight)

    @weight.setter
    def weight(self, value: torch.Tensor) -> None:
        refuse_writing()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in torch; a new ``weight`` raises :class:`Qua2SeDiMoError`."""
        if name == "weight":
            refuse_writing()
        super().register_parameter(name, param)

    def requires_grad_(self, requires_grad: bool = True) -> QuantizedLayer:
        """As in torch, for the bias: packed tensors have no gradients."""
        if self.bias is not None:
            self.bias.requires_grad_(requires_grad)
        return self

    def set_packed(self, name: str, tensor: torch.Tensor) -> None:
        """Store one of the packed tensors."""
        self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        known = getattr(destination, "_metadata", None)
        if known is not None:
            metadata = PackedMetadata(known.get(prefix[:-1], {}))
            metadata.layer = prefix[:-1]
            known[prefix[:-1]] = metadata

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        if f"{prefix}weight" in state_dict:
            raise Qua2SeDiMoError(
                f"layer '{prefix[:-1]}' is packed and cannot load the plain weight '{prefix}weight'",
                "Call qua2sedimo.dequantize(model) before loading plain weights.",
            )
        super()._load_from_state_dict(state_dict, prefix, OrderedDict(local_metadata), *rest)  # type: ignore[misc]

    def extra_repr(self) -> str:
        """The layer's geometry and the options of its parts, for printing."""
        return f"{super().extra_repr()}, {' + '.join(str(part.storage.option) for part in self.parts)}"


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc,override]
    """A :class:`torch.nn.Linear` whose weight is stored quantized.

    ``integer_bits`` is the bit width of input codes for integer arithmetic, None to compute in floating point; it is
    set by :func:`~qua2sedimo.runtime.set_activation_bits`.
    """

    integer_bits: int | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]; in integer arithmetic if ``integer_bits`` is set, through thin factors if it has them."""
        factors = self._thin_factors()
        if factors is not None:
            a, b = factors
            return functional.linear(functional.linear(input, b), a, self.bias)
        if self.integer_bits is None:
            return nn.Linear.forward(self, input)
        value = self._value(self.parts[0])
        return integer_linear(input, value.codes, *integer_levels(value), self.bias, value.number, self.integer_bits)

    def _thin_factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A and B of a weight A·B, if A(Bx) takes fewer multiplications than Wx, whatever the number of inputs x."""
        option = self.parts[0].storage.option
        method, (channels, n) = METHODS[option.method], self.shape
        thin = option.number * (channels + n) < channels * n
        if len(self.parts) > 1 or not isinstance(method, LowRank) or not thin:
            return None
        return method.factors(self._value(self.parts[0]), self.compute_dtype)


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
    """The plain class (Linear, Conv1d, Conv2d or Conv3d) whose computation ``module`` performs.

    Raises :class:`Qua2SeDiMoError` if it is none of them, or a subclass that overrides the forward pass, which a
    replacement would drop silently.
    """
    for plain, quantized in _QUANTIZED.items():
        if isinstance(module, quantized):
            return plain
        if isinstance(module, plain):
            if not overridden(type(module), plain):
                return plain
            raise Qua2SeDiMoError(
                f"{type(module).__name__} overrides the forward pass of {plain.__name__}",
                "Leave this layer unquantized.",
            )
    raise Qua2SeDiMoError(f"expected a Linear or Conv1d/2d/3d layer, got {type(module).__name__}")


def quantized_module(
    module: nn.Module, value: QuantizedWeight | Sequence[tuple[tuple[int, int] | None, QuantizedWeight]]
) -> QuantizedLayer:
    """A quantized layer in place of ``module``, with ``value`` as its weight, or one (span, value) per part.

    It shares the bias of ``module``, and has its device and dtype. Raises :class:`Qua2SeDiMoError` if the parts do not
    cover the weight or a value's tensors do not match its method.
    """
    values = [(None, value)] if isinstance(value, QuantizedWeight) else value
    quantized = empty_quantized_module(module, [Part(span, Storage.of(value)) for span, value in values])
    device = _weight(module).device
    for part, (_, stored) in zip(quantized.parts, values):
        for name, tensor in checked_tensors(module, part, stored).items():
            quantized.set_packed(name, tensor if device.type == "meta" else tensor.to(device))
    return quantized


def checked_tensors(module: nn.Module, part: Part, value: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors to store for ``value``, a part of the module's weight, by buffer name.

    Raises :class:`Qua2SeDiMoError` if its shape is not that of the part or its tensors do not match its method.
    """
    whole = tuple(_weight(module).shape)
    shape = part.shape(whole)
    if tuple(value.shape) != shape:
        raise Qua2SeDiMoError(f"quantized weight has shape {list(value.shape)}, the layer's is {list(shape)}")
    tensors = {part.prefix + name: tensor for name, tensor in packed_tensors(value).items()}
    layout = part.layout(whole)
    for name, tensor in tensors.items():
        dtype, size = layout.get(name, (None, ()))
        if tensor.dtype != dtype or tuple(tensor.shape) != size:
            raise Qua2SeDiMoError(
                f"'{name}' of {value.option} for a weight {list(shape)}: expected "
                f"{dtype} {list(size)}, got {tensor.dtype} {list(tensor.shape)}"
            )
    return tensors


def empty_quantized_module(module: nn.Module, parts: Sequence[Part]) -> QuantizedLayer:
    """A quantized layer in place of ``module`` with packed tensors on the meta device, to be loaded later.

    Shapes follow from ``parts``; no weight is allocated. Raises :class:`Qua2SeDiMoError` if the parts, in order, do not
    cover the weight's input channels.
    """
    plain = plain_class(module)
    weight = _weight(module)
    shape = tuple(weight.shape)
    if not covers(parts, shape):
        raise Qua2SeDiMoError(f"parts {[part.span for part in parts]} do not cover a weight of shape {list(shape)}")
    quantized = bare(_QUANTIZED[plain], module)
    quantized.parts, quantized.shape = tuple(parts), shape
    for part in parts:
        for name, (stored, size) in part.layout(shape).items():
            quantized.set_packed(name, torch.empty(size, dtype=stored, device="meta"))
    # An empty tensor follows casts of the model as a bias would. It is never on meta, because it is never loaded.
    device = "cpu" if weight.device.type == "meta" else weight.device
    marker = torch.empty(0, dtype=weight.dtype, device=device)
    quantized.register_buffer("_compute", marker, persistent=False)
    return quantized


def covers(parts: Sequence[Part], shape: tuple[int, ...]) -> bool:
    """Whether the parts, in order and without gaps, cover a weight of this shape."""
    if len(parts) == 1 and parts[0].span is None:
        return True
    at = 0
    for part in parts:
        if part.span is None or part.span[0] != at or part.span[1] <= at:
            return False
        at = part.span[1]
    return len(shape) > 1 and at == shape[1]


def packed_layout(option: Option, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name → (dtype, shape) of the tensors stored for a weight of this shape."""
    method = METHODS[option.method]
    parameters = method.parameter_shapes(shape, option.number)
    codes = (method.code_bytes(shape, option.number),)
    return {"codes": (torch.uint8, codes), **{name: (torch.int16, size) for name, size in parameters.items()}}


def packed_tensors(value: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors stored for ``value``, by buffer name: codes, and parameters as int16 bit patterns."""
    patterns = {name: tensor.contiguous().view(torch.int16) for name, tensor in value.parameters.items()}
    return {"codes": value.codes, **patterns}


def bare(cls: type[Any], module: nn.Module) -> Any:
    """A ``cls`` with the hyperparameters, bias and training mode of ``module``, without a weight."""
    bare: Any = object.__new__(cls)
    nn.Module.__init__(bare)
    own = _LINEAR if isinstance(module, nn.Linear) else _CONV
    bare.__dict__.update({name: getattr(module, name) for name in own}, training=module.training)
    bare.register_parameter("bias", module.bias)
    return bare


def _weight(module: nn.Module) -> torch.Tensor:
    plain_class(module)
    assert isinstance(module.weight, torch.Tensor)
    return module.weight
