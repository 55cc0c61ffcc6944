"""A quantized layer computes what a plain one with the dequantized weight does, whatever is done to it."""

import copy

import pytest
import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, dequantize_weight
from qua2sedimo.runtime import Part, QuantizedLayer, Storage, empty_quantized_module, quantized_module

LAYERS = {
    "linear": (lambda: nn.Linear(24, 6), (2, 24)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (2, 4, 9, 9)),
    "conv2d_same": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 3, 3)), (2, 4, 3, 5, 5)),
}


def layer(method: str = "uaq", bits: int = 3, dtype: torch.dtype = torch.float32, bias: bool = True):
    torch.manual_seed(0)
    plain = nn.Linear(24, 6, bias=bias).to(dtype)
    value = METHODS[method].quantize(plain.weight, [bits])[0]
    return plain, value, quantized_module(plain, value)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_computes_as_the_plain_layer_with_the_dequantized_weight(kind: str, method: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plain, x = make(), torch.randn(shape)
    for bits, value in zip(range(2, 9), METHODS[method].quantize(plain.weight, list(range(2, 9)))):
        quantized = quantized_module(plain, value)
        assert isinstance(quantized, type(plain)) and isinstance(quantized, QuantizedLayer)
        reference = copy.deepcopy(plain)
        reference.weight.data = dequantize_weight(value)
        assert torch.equal(quantized(x), reference(x)), bits
        assert f"{method}-{bits}" in repr(quantized)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [True, False])
def test_casts_do_not_touch_what_is_stored(stored: torch.dtype, method: str, bias: bool) -> None:
    _, value, quantized = layer(method, 4, stored, bias)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        quantized.to(dtype)
        assert quantized.compute_dtype == quantized.weight.dtype == dtype
        assert torch.equal(quantized.weight, dequantize_weight(value).to(dtype))
        assert quantized(torch.randn(2, 24, dtype=dtype)).dtype == dtype
    assert torch.equal(quantized.half().float().weight, dequantize_weight(value).float())


def test_holds_only_the_packed_bytes_and_shares_the_bias() -> None:
    plain, value, quantized = layer("kmeans_c")
    held = sum(t.numel() * t.element_size() for t in quantized.buffers())
    assert held == value.nbytes
    assert [name for name, _ in quantized.named_parameters()] == ["bias"]
    assert quantized.bias is plain.bias


@pytest.mark.parametrize("method", METHODS)
def test_survives_deepcopy_state_dict_and_a_stay_on_another_device(method: str) -> None:
    plain, value, quantized = layer(method)
    twin = copy.deepcopy(quantized)
    assert twin.codes.data_ptr() != quantized.codes.data_ptr()
    empty = empty_quantized_module(plain, [Part(None, Storage(Option(method, 3), torch.float32))])
    assert empty.codes.is_meta
    empty.load_state_dict(quantized.state_dict(), assign=True)
    for other in (twin, empty, quantized.to("cpu")):
        assert torch.equal(other.weight, dequantize_weight(value))
    assert quantized.to("meta").weight.is_meta


@pytest.mark.parametrize("method", METHODS)
def test_is_traced_by_torch_compile_without_a_graph_break(method: str) -> None:
    _, _, quantized = layer(method)
    x = torch.randn(2, 24)
    compiled = torch.compile(quantized, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), quantized(x))


def test_gradients_reach_the_input() -> None:
    _, value, quantized = layer()
    x = torch.randn(2, 24, requires_grad=True)
    quantized(x).sum().backward()
    torch.testing.assert_close(x.grad, dequantize_weight(value).sum(0).expand(2, -1))


def test_refuses_what_does_not_fit() -> None:
    plain, value, _ = layer()
    with pytest.raises(Qua2SeDiMoError, match=r"shape \[6, 24\], the layer's is \[5, 24\]"):
        quantized_module(nn.Linear(24, 5), value)
    value.parameters["scale"] = torch.ones(3, dtype=torch.float16)
    with pytest.raises(Qua2SeDiMoError, match="'scale' of uaq-3"):
        quantized_module(plain, value)
    with pytest.raises(Qua2SeDiMoError, match="Embedding"):
        quantized_module(nn.Embedding(3, 4), value)
    with pytest.raises(Qua2SeDiMoError, match="bits must be 2 to 8"):
        Part(None, Storage(Option("uaq", 9), torch.float32))


def test_refuses_a_subclass_with_its_own_forward_pass() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(Qua2SeDiMoError, match="Doubled overrides the forward pass of"):
        empty_quantized_module(Doubled(4, 4), [Part(None, Storage(Option("uaq", 4), torch.float32))])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_in_parts_computes_as_the_plain_one_with_the_parts_side_by_side(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plain, x = make(), torch.randn(shape)
    end = plain.weight.shape[1]
    cut = end // 2
    spans = [(0, cut), (cut, end)]
    values = [
        METHODS[method].quantize(plain.weight[:, a:b], [bits])[0]
        for (a, b), method, bits in zip(spans, ("kmeans_a", "uaq"), (2, 5))
    ]
    quantized = quantized_module(plain, list(zip(spans, values)))
    plain.weight.data = torch.cat([dequantize_weight(value) for value in values], dim=1)
    assert torch.equal(quantized(x), plain(x))
    held = sum(t.numel() * t.element_size() for t in quantized.buffers())
    assert held == sum(value.nbytes for value in values)
    assert "kmeans_a-2 + uaq-5" in repr(quantized)
    for wrong in (spans[:1], spans[::-1], [(0, cut), (cut, end + 1)]):
        with pytest.raises(Qua2SeDiMoError):
            quantized_module(plain, list(zip(wrong, values)))
