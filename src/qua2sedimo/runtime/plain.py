"""Convert a packed model back into a plain one."""

from __future__ import annotations

import torch
from torch import nn

from qua2sedimo.denoisers.quantized import forget_quantization
from qua2sedimo.runtime.activations import set_activation_bits
from qua2sedimo.runtime.guards import unguard
from qua2sedimo.runtime.modules import QuantizedLayer, bare, plain_class
from qua2sedimo.runtime.replace import replace_layers


def dequantize(model: nn.Module) -> nn.Module:
    """Replace quantized layers with plain ones of the dequantized weights; modifies and returns ``model``.

    A model loaded from a packed checkpoint is then an ordinary model without activation quantization.
    """
    set_activation_bits(model, None)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer)}
    replace_layers(model, {name: _plain_module(layer) for name, layer in layers.items()})
    unguard(model)
    return forget_quantization(model)


def _plain_module(layer: QuantizedLayer) -> nn.Module:
    plain = bare(plain_class(layer), layer)
    plain.weight = nn.Parameter(layer.weight.as_subclass(torch.Tensor))
    return plain
