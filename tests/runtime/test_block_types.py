"""Layers of GGUF's block types, and 16-bit ones, in packed models: they compute what their weights say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from tests.runtime.helpers import output
from torch import nn

from qua2sedimo.options import Option, options_for
from qua2sedimo.quantizers import METHODS, dequantize_weight
from qua2sedimo.runtime import dequantize, quantized_module, save_packed
from qua2sedimo.runtime.table import layer_modules

OPTIONS = options_for("gguf", (256, 256))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_packed_layer_computes_with_its_weight(option: Option, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(256, 5).to(dtype)
    (value,) = METHODS[option.method].quantize(plain.weight, [option.number])
    layer = quantized_module(plain, value)
    assert sum(t.numel() * t.element_size() for t in map(layer.__getattr__, layer.packed_names())) == value.nbytes
    assert torch.equal(layer.weight, dequantize_weight(value))
    x = torch.randn(3, 256).to(dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, dequantize_weight(value), plain.bias))


def test_every_option_comes_back_from_a_packed_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=128, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=256, sample_size=8, patch_size=2, caption_channels=24, use_additional_conditions=False,
    ).half().eval()  # fmt: skip
    values, turn = {}, 0
    for name, layer in layer_modules(model).items():
        fitting = [o for o in OPTIONS if METHODS[o.method].fits(tuple(layer.weight.shape), o.number)]
        chosen = fitting[turn % len(fitting)]
        turn += len(fitting) > 1
        (values[name],) = METHODS[chosen.method].quantize(layer.weight, [chosen.number])
    assert {v.option for v in values.values()} == {str(o) for o in OPTIONS}
    size = save_packed(model, None, values, tmp_path / "out")
    assert size.quantized_bytes == sum(value.nbytes for value in values.values())
    loaded = PixArtTransformer2DModel.from_pretrained(tmp_path / "out", torch_dtype=torch.float16)
    for name, value in values.items():
        assert torch.equal(loaded.get_submodule(name).weight, dequantize_weight(value)), value.option
    assert torch.equal(output(loaded), output(dequantize(loaded)))


@pytest.mark.parametrize("option", [Option("gguf_k", 3), Option("gguf_k", 4), Option("gguf_nl", 4)], ids=str)
def test_compiled_layers_compute_the_same(option: Option) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(256, 4).half()
    layer = quantized_module(plain, METHODS[option.method].quantize(plain.weight, [option.number])[0])
    x = torch.randn(2, 256).half()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=2e-3, atol=2e-3)
