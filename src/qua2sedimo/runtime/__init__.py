"""Quantized layers that compute from packed weights, packed checkpoints, and the diffusers backend to load them."""

from qua2sedimo.runtime.activations import activation_bits, set_activation_bits
from qua2sedimo.runtime.backend import Qua2SeDiMoQuantizer, register
from qua2sedimo.runtime.checkpoint import PackedSize, save_packed
from qua2sedimo.runtime.description import Qua2SeDiMoConfig
from qua2sedimo.runtime.live import pack
from qua2sedimo.runtime.modules import (
    Part,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedLayer,
    QuantizedLinear,
    Storage,
    empty_quantized_module,
    quantized_module,
)
from qua2sedimo.runtime.plain import dequantize
from qua2sedimo.runtime.recipes import Recipe, recipe
from qua2sedimo.runtime.replace import replace_layers
from qua2sedimo.runtime.text_backend import register_texts
from qua2sedimo.runtime.units import quantized_layers

register()
register_texts()

__all__ = [
    "PackedSize",
    "Part",
    "Qua2SeDiMoConfig",
    "Qua2SeDiMoQuantizer",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConv3d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Recipe",
    "Storage",
    "activation_bits",
    "dequantize",
    "empty_quantized_module",
    "pack",
    "quantized_layers",
    "quantized_module",
    "recipe",
    "register",
    "replace_layers",
    "save_packed",
    "set_activation_bits",
]
