"""Layers of a live model can be replaced by quantized ones and back."""

import copy

import pytest
import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS, dequantize_weight
from qua2sedimo.runtime import QuantizedLayer, dequantize, quantized_module, replace_layers

from .helpers import dit, mixed, output, unet


@pytest.mark.parametrize("make", [dit, unet])
def test_replacing_and_dequantizing_give_the_same_output(make) -> None:
    model = make()
    values = dict(mixed(model))
    plain = copy.deepcopy(model)
    for name, value in values.items():
        plain.get_submodule(name).weight.data = dequantize_weight(value)
    replace_layers(model, {n: quantized_module(model.get_submodule(n), v) for n, v in values.items()})
    assert sum(isinstance(m, QuantizedLayer) for m in model.modules()) == len(values)
    assert torch.equal(output(model), output(plain))
    assert torch.equal(output(copy.deepcopy(model)), output(plain))

    assert dequantize(model) is model
    assert not any(isinstance(m, QuantizedLayer) for m in model.modules())
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(output(model), output(plain))
    assert "fuse_lora" not in vars(model)


def test_a_shared_module_is_replaced_under_all_its_names() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    value = METHODS["uaq"].quantize(shared.weight, [4])[0]
    replace_layers(model, {"a": quantized_module(shared, value)})
    assert model["a"] is model["b"][0] and isinstance(model["a"], QuantizedLayer)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(Qua2SeDiMoError, match=r"no layer 'x\.y'"):
        replace_layers(nn.Sequential(nn.Linear(2, 2)), {"x.y": nn.Linear(2, 2)})


def test_fusing_an_adapter_is_refused_until_dequantized() -> None:
    model = unet()
    value = METHODS["uaq"].quantize(model.conv_in.weight, [4])[0]
    replace_layers(model, {"conv_in": quantized_module(model.conv_in, value)})
    with pytest.raises(Qua2SeDiMoError, match="cannot be fused"):
        copy.deepcopy(model).fuse_lora()
    assert "_refuse" not in dequantize(model).fuse_lora.__name__
