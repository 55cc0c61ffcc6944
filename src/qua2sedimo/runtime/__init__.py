"""Layers that compute from packed weights, packed checkpoints, and the diffusers backend that loads them."""

from qua2sedimo.runtime.backend import Qua2SeDiMoConfig, Qua2SeDiMoQuantizer, register
from qua2sedimo.runtime.checkpoint import PackedSize, save_packed
from qua2sedimo.runtime.modules import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedLayer,
    QuantizedLinear,
    dequantize,
    empty_quantized_module,
    quantized_module,
    replace_layers,
)

register()

__all__ = [
    "PackedSize",
    "Qua2SeDiMoConfig",
    "Qua2SeDiMoQuantizer",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConv3d",
    "QuantizedLayer",
    "QuantizedLinear",
    "dequantize",
    "empty_quantized_module",
    "quantized_module",
    "register",
    "replace_layers",
    "save_packed",
]
