"""A quantized layer computes what a plain one with the dequantized weight does, whatever is done to it."""

import copy
from unittest.mock import patch

import pytest
import torch
from tests.methods import ANY_SHAPE
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
@pytest.mark.parametrize("method", ANY_SHAPE)
def test_computes_as_the_plain_layer_with_the_dequantized_weight(kind: str, method: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plain, x = make(), torch.randn(shape)
    for bits, value in zip(range(1, 9), METHODS[method].quantize(plain.weight, list(range(1, 9)))):
        quantized = quantized_module(plain, value)
        assert isinstance(quantized, type(plain)) and isinstance(quantized, QuantizedLayer)
        reference = copy.deepcopy(plain)
        reference.weight.data = dequantize_weight(value)
        if method == "lowrank" and kind == "linear":  # through its factors, up to rank 4
            torch.testing.assert_close(quantized(x), reference(x))
        else:
            assert torch.equal(quantized(x), reference(x)), bits
        assert f"{method}-{bits}" in repr(quantized)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ANY_SHAPE)
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
    held = sum(t.nbytes for t in (*quantized.parameters(), *quantized.buffers()) if t is not quantized.bias)
    assert held == value.nbytes
    assert [name for name, p in quantized.named_parameters() if p.requires_grad] == ["bias"]
    assert next(quantized.parameters()) is quantized.bias
    assert quantized.bias is plain.bias


@pytest.mark.parametrize("method", ANY_SHAPE)
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


@pytest.mark.parametrize("method", ANY_SHAPE)
def test_is_traced_by_torch_compile_without_a_graph_break(method: str) -> None:
    _, _, quantized = layer(method)
    x = torch.randn(2, 24)
    compiled = torch.compile(quantized, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), quantized(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("bias", [True, False])
def test_low_rank_layers_compute_through_their_factors(dtype: torch.dtype, size: float, bias: bool) -> None:
    """What the decoded weight computes, within rounding of the type."""
    torch.manual_seed(0)
    plain = nn.Linear(80, 60, bias=bias)
    plain.weight.data = size * torch.randn(60, 80)
    value = METHODS["lowrank"].quantize(plain.weight.detach(), [12])[0]
    quantized = quantized_module(plain, value).to(dtype)
    reference = copy.deepcopy(plain).to(torch.float64)
    reference.weight.data = dequantize_weight(value).double()
    for shape in ((80,), (1, 80), (2, 300, 80), (0, 80)):
        x = torch.randn(shape, dtype=dtype)
        found, expected = quantized(x), reference(x.double())
        assert found.dtype == dtype and found.shape == expected.shape
        eps = 4 * torch.finfo(dtype).eps + torch.finfo(torch.float32).eps
        assert (found.double() - expected).norm() <= eps * expected.norm()


@pytest.mark.parametrize("rank", [1, 14, 15, 16, 40])
def test_factors_are_used_where_they_take_fewer_multiplications(rank: int) -> None:
    """24 · 40 for the weight, rank · (24 + 40) for the factors: fewer up to rank 14."""
    plain = nn.Linear(40, 24)
    quantized = quantized_module(plain, METHODS["lowrank"].quantize(plain.weight.detach(), [rank])[0])
    with patch.object(QuantizedLayer, "weight", property(lambda _: pytest.fail("decoded"))):
        if rank < 15:
            quantized(torch.randn(3, 40))
        else:
            with pytest.raises(pytest.fail.Exception, match="decoded"):
                quantized(torch.randn(3, 40))


def test_gradients_pass_through_factors() -> None:
    plain = nn.Linear(40, 24)
    value = METHODS["lowrank"].quantize(plain.weight.detach(), [6])[0]
    quantized, x = quantized_module(plain, value), torch.randn(3, 5, 40, requires_grad=True)
    wanted = torch.randn(3, 5, 24)
    (quantized(x) * wanted).sum().backward()
    torch.testing.assert_close(x.grad, wanted @ dequantize_weight(value))
    torch.testing.assert_close(plain.bias.grad, wanted.sum(dim=(0, 1)))


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
    with pytest.raises(Qua2SeDiMoError, match="bits must be 1 to 8"):
        Part(None, Storage(Option("uaq", 9), torch.float32))


def test_refuses_a_subclass_with_its_own_forward_pass() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(Qua2SeDiMoError, match="Doubled overrides the forward pass of"):
        empty_quantized_module(Doubled(4, 4), [Part(None, Storage(Option("uaq", 4), torch.float32))])


@pytest.mark.parametrize("methods", [("kmeans_a", "uaq"), ("lowrank", "row"), ("row", "lowrank")])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_in_parts_computes_as_the_plain_one_with_the_parts_side_by_side(
    kind: str, methods: tuple[str, str]
) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    plain, x = make(), torch.randn(shape)
    end = plain.weight.shape[1]
    cut = end // 2
    spans = [(0, cut), (cut, end)]
    values = [
        METHODS[method].quantize(plain.weight[:, a:b], [bits])[0]
        for (a, b), method, bits in zip(spans, methods, (1, 5))
    ]
    quantized = quantized_module(plain, list(zip(spans, values)))
    plain.weight.data = torch.cat([dequantize_weight(value) for value in values], dim=1)
    assert torch.equal(quantized(x), plain(x))
    held = sum(t.numel() * t.element_size() for t in quantized.parameters() if not t.requires_grad)
    assert held == sum(value.nbytes for value in values)
    assert f"{methods[0]}-1 + {methods[1]}-5" in repr(quantized)
    for wrong in (spans[:1], spans[::-1], [(0, cut), (cut, end + 1)]):
        with pytest.raises(Qua2SeDiMoError):
            quantized_module(plain, list(zip(wrong, values)))
