"""Activations are rounded to grids of their own, alike wherever they are computed."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import given
from hypothesis import strategies as st
from tests.denoisers.coverage.check import built
from tests.methods import ANY_SHAPE
from torch import nn
from torch.nn import functional

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import LEVEL_METHODS, METHODS, unpack
from qua2sedimo.runtime import (
    QuantizedLinear,
    activation_bits,
    dequantize,
    quantized_layers,
    quantized_module,
    replace_layers,
    save_packed,
    set_activation_bits,
)
from qua2sedimo.runtime.activations import attention, rounded
from qua2sedimo.runtime.integer import integer_levels, integer_linear, multiplies_exactly
from qua2sedimo.runtime.table import layer_modules

from .helpers import dit, every_layer, inputs_of, mixed, output, packed_here, pixart, unet

needs_integers = pytest.mark.skipif(not multiplies_exactly(4), reason="this PyTorch or CPU has no exact product")


@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(4, 8),
    shift=st.sampled_from([0.0, 1e-3, -7.0, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_rounding_stays_within_half_a_step_and_keeps_the_ends(seed, bits, shift, dtype) -> None:
    x = (torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) + shift).to(dtype)
    near = rounded(x, bits)
    low, high = x.float().amin(1, keepdim=True), x.float().amax(1, keepdim=True)
    own_type = 2 * x.float().abs().amax(1, keepdim=True) * torch.finfo(dtype).eps  # as the result is written
    assert near.dtype == dtype
    assert ((near.float() - x.float()).abs() <= (high - low) / (2**bits - 1) / 2 * 1.001 + own_type).all()
    assert torch.equal(near.amin(1), x.amin(1))
    assert (near.float().amax(1, keepdim=True) - high).abs().max() <= own_type.max()
    assert all(row.unique().numel() <= 2**bits for row in near)


@pytest.mark.parametrize("value", [0.0, 1.5, -3e4, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_constant_row_is_exact(value: float, dtype: torch.dtype) -> None:
    x = torch.full((2, 5), value).to(dtype)
    assert torch.equal(rounded(x, 6), x)


def test_gradients_pass_the_rounding() -> None:
    x = torch.randn(2, 6, requires_grad=True)
    (3 * rounded(x, 4)).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 6), 3.0))


@pytest.mark.parametrize("masked", [None, "bool", "float", "causal", "heads"])
def test_attention_at_8_bits_is_near_and_at_4_bits_less_near(masked) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    given: dict = {}
    if masked == "bool":
        given["attn_mask"] = torch.rand(2, 1, 7, 9) > 0.3
    elif masked == "float":
        given["attn_mask"] = torch.randn(2, 1, 1, 9)
    elif masked == "causal":
        given["is_causal"] = True
    elif masked == "heads":
        k, v, given["enable_gqa"] = k[:, :2], v[:, :2], True
    exact = functional.scaled_dot_product_attention(q, k, v, **given)
    errors = [float((attention(q, k, v, **given, bits=bits) - exact).norm() / exact.norm()) for bits in (4, 8)]
    assert 0 < errors[1] < 0.02 < errors[0] < 0.3


@pytest.mark.parametrize("mask_shape", [None, (50, 50), (2, 1, 1, 50), (2, 3, 50, 50), (1, 3, 50, 50)])
@pytest.mark.parametrize("most", [50 * 7, 50 * 50, 2 * 50 * 50, 5 * 50 * 50])
def test_attention_in_chunks_is_the_same(monkeypatch, mask_shape, most: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 50, 8, requires_grad=True) for _ in range(3))
    mask = None if mask_shape is None else torch.randn(mask_shape)
    exact = functional.scaled_dot_product_attention(q, k, v, mask)
    with torch.no_grad():
        whole = attention(q, k, v, mask, bits=8)
    assert 0 < (whole - exact).norm() < 0.02 * exact.norm()
    monkeypatch.setattr("qua2sedimo.runtime.activations._MOST_SCORES", most)
    parts = attention(q, k, v, mask, bits=8)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=2e-3)  # a probability between two codes may go either way
    (grads, wanted) = (torch.autograd.grad(made.square().sum(), q)[0] for made in (parts, exact))
    assert (grads - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("make", [pixart, dit, unet])
def test_what_a_live_model_computes_is_what_its_layers_do_with_rounded_inputs(make, monkeypatch) -> None:
    model = make()
    plain = output(model)
    reference = copy.deepcopy(model)
    assert set_activation_bits(model, 6) is model and activation_bits(model) == 6
    found = output(model)

    linear, conv = functional.linear, nn.Conv2d._conv_forward
    sdpa = functional.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(functional, "linear", lambda x, w, b=None: linear(rounded(x, 6), w, b))
        patch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, w, b: conv(self, rounded(x, 6, (1, 2, 3)), w, b))
        patch.setattr(functional, "scaled_dot_product_attention", lambda *a, **k: attention(*a, **k, bits=6))
        assert torch.equal(output(reference), found)
    assert functional.scaled_dot_product_attention is sdpa
    assert not torch.equal(found, plain)
    assert torch.equal(output(copy.deepcopy(model)), found)
    set_activation_bits(model, None)
    assert activation_bits(model) is None and torch.equal(output(model), plain)


def test_more_bits_come_nearer() -> None:
    model = dit()
    exact = output(model)
    errors = [float((output(set_activation_bits(model, bits)) - exact).norm()) for bits in (4, 6, 8)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_only_the_named_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    x = torch.randn(3, 8)
    set_activation_bits(model, 4, layers=["1"])
    assert torch.equal(model(x), model[1].forward(rounded(model[0].forward(x), 4)))
    with pytest.raises(Qua2SeDiMoError, match="no Linear or Conv layer '2'"):
        set_activation_bits(model, 4, layers=["2"])


@pytest.mark.parametrize("bits", [3, 9, 0, True, 8.5, "8"])
def test_other_widths_are_refused(bits) -> None:
    with pytest.raises(Qua2SeDiMoError, match="4 to 8 bits"):
        set_activation_bits(dit(), bits)


def test_attention_that_nothing_can_be_put_into_is_refused() -> None:
    model = unet()
    model.set_attn_processor(AttnProcessor())
    with pytest.raises(Qua2SeDiMoError, match="computes attention with AttnProcessor"):
        set_activation_bits(model, 8)


def test_a_failing_forward_leaves_attention_as_it_was() -> None:
    model = set_activation_bits(dit(), 4)
    with pytest.raises(TypeError):
        model(nonsense=1)
    q = torch.randn(1, 1, 3, 4)
    expected = torch.softmax(q @ q.transpose(-1, -2) / 2, -1) @ q
    torch.testing.assert_close(functional.scaled_dot_product_attention(q, q, q), expected)


@pytest.mark.parametrize("bits", [8, 6])
def test_the_width_is_saved_and_loaded(bits: int, tmp_path) -> None:
    model = dit()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()  # as the file holds what is not quantized
    values = dict(mixed(model))
    save_packed(model, None, values, tmp_path / "out", act_bits=bits)
    loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    assert activation_bits(loaded) == bits
    replace_layers(model, quantized_layers(model, values))
    set_activation_bits(model, bits)
    assert torch.equal(output(loaded), output(model))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(output(type(model).from_pretrained(tmp_path / "again")), output(model))
    set_activation_bits(loaded, None).save_pretrained(tmp_path / "wide")
    wide = type(model).from_pretrained(tmp_path / "wide")
    assert activation_bits(wide) is None and not torch.equal(output(wide), output(model))
    set_activation_bits(loaded, bits)
    assert activation_bits(dequantize(loaded)) is None
    assert torch.equal(output(loaded), output(wide))


@needs_integers
@pytest.mark.parametrize("act_bits", [8, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_agree_with_the_simulation(bits: int, bias: bool, act_bits: int) -> None:
    if not multiplies_exactly(bits):
        pytest.skip("this CPU adds such products in 16 bits")
    torch.manual_seed(bits)
    plain = nn.Linear(96, 40, bias=bias)
    plain.weight.data[3] = 0.25  # a constant channel
    plain.weight.data[4] += 9  # a channel whose range is far from 0
    model = nn.Sequential(quantized_module(plain, METHODS["uaq"].quantize(plain.weight.detach(), [bits])[0]))
    x = torch.randn(2, 7, 96) + 1
    x[0, 0] = 3.25  # a constant row
    simulated = set_activation_bits(model, act_bits, integer=False)(x)
    assert model[0].integer_bits is None
    found = set_activation_bits(model, act_bits, integer=True)(x)
    assert model[0].integer_bits == act_bits
    torch.testing.assert_close(found, simulated, rtol=1e-4, atol=1e-3)
    assert not torch.equal(model[0].forward(x), set_activation_bits(model, None)(x))
    # the greatest products: nothing overflows
    model[0].codes.fill_(255)
    x = torch.where(torch.rand(5, 96) < 0.02, -1.0, 1.0)
    both = [set_activation_bits(model, 8, integer=integer)(x) for integer in (False, True)]
    torch.testing.assert_close(both[1], both[0], rtol=1e-4, atol=1e-3)


@needs_integers
@pytest.mark.parametrize("tokens", [0, 1, 2, 17])
def test_integers_in_many_parts_are_those_in_one(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(tokens)
    value = METHODS["uaq"].quantize(torch.randn(33, 70), [4])[0]
    given = (value.codes, *integer_levels(value), torch.randn(33), 4, 8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = (3 * torch.randn(tokens, 70) + 1).to(dtype)
        with monkeypatch.context() as patch:
            patch.setattr("qua2sedimo.runtime.integer_rows.MOST", 1 << 20)
            whole = integer_linear(x, *given)
            patch.setattr("qua2sedimo.runtime.integer_rows.MOST", 100)
            assert torch.equal(integer_linear(x, *given), whole)
        assert whole.dtype == dtype and whole.shape == (tokens, 33)


@needs_integers
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_spoils_itself_alone(wrong: float) -> None:
    value = METHODS["uaq"].quantize(torch.randn(5, 40), [4])[0]
    x = torch.randn(3, 40)
    x[1, 7] = wrong
    found = integer_linear(x, value.codes, *integer_levels(value), None, 4, 8)
    assert torch.isfinite(found[[0, 2]]).all() and not torch.isfinite(found[1]).any()


@needs_integers
def test_the_integer_operation_keeps_the_rules_of_operations() -> None:
    for method in LEVEL_METHODS.values():
        value = method.quantize(torch.randn(8, 64), [4])[0]
        arguments = (value.codes, *integer_levels(value), torch.randn(8), 4, 8)
        torch.library.opcheck(integer_linear, (torch.randn(2, 3, 64), *arguments))


@needs_integers
@pytest.mark.parametrize("method", LEVEL_METHODS)
def test_gradients_pass_the_rounding_in_integers_too(method: str) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(25, 9)  # 225 codes: the last byte is not full
    value = METHODS[method].quantize(plain.weight.detach(), [3])[0]
    model = nn.Sequential(quantized_module(plain, value))
    x, wanted = torch.randn(2, 3, 25, requires_grad=True), torch.randn(2, 3, 9)
    set_activation_bits(model, 8, integer=True)
    (model(x) * wanted).sum().backward()
    table, scale, offset = integer_levels(value)
    levels = (scale[:, None] * table.float() + offset[:, None]).expand(9, -1)
    weight = torch.gather(levels, 1, unpack(value.codes, 3, 225).view(9, 25).long())
    torch.testing.assert_close(x.grad, wanted @ weight)
    torch.testing.assert_close(plain.bias.grad, wanted.sum(dim=(0, 1)))


@needs_integers
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("method", ["kmeans_c", "kmeans_a", "row"])
def test_codebooks_of_integers_agree_with_the_simulation_of_the_rounded_codebook(method, bits, bias) -> None:
    torch.manual_seed(bits)
    plain = nn.Linear(96, 40, bias=bias)
    plain.weight.data[3] = 0.25  # a constant channel
    value = METHODS[method].quantize(plain.weight.detach(), [bits])[0]
    model = nn.Sequential(quantized_module(plain, value))
    x = torch.randn(2, 7, 96) + 1
    found = set_activation_bits(model, 8, integer=True)(x)
    assert model[0].integer_bits == 8
    table, scale, offset = integer_levels(value)
    levels = scale[:, None] * table.float() + offset[:, None]
    exact = LEVEL_METHODS[method].levels(value.parameters, bits)
    assert ((levels - exact).abs() <= scale[:, None] * 0.501).all()
    own = unpack(value.codes, bits, 96 * 40).view(40, 96).long()
    rounded_weight = torch.gather(levels.expand(40, -1), 1, own)
    expected = functional.linear(rounded(x, 8), rounded_weight, plain.bias)
    # An input halfway between two steps may be rounded to either, in other orders of summing: one step times a weight.
    step = float((x.amax(-1) - x.amin(-1)).max() / 255)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 + step * float(rounded_weight.abs().max()))
    assert (found - expected).abs().median() < 1e-3
    simulated = set_activation_bits(model, 8, integer=False)(x)
    assert (0 if bits > 1 else -1) < (found - simulated).norm() < 0.02 * simulated.norm()
    assert torch.equal(set_activation_bits(model, 8)(x), simulated)  # only when it is asked for


@pytest.mark.parametrize("integer", [None, False])
def test_low_rank_layers_compute_in_floating_point_with_rounded_inputs(integer: bool | None) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 40)
    value = METHODS["lowrank"].quantize(plain.weight.detach(), [6])[0]
    model = nn.Sequential(quantized_module(plain, value))
    x = torch.randn(2, 7, 96) + 1
    wanted = model[0].forward(rounded(x, 8))
    assert torch.equal(set_activation_bits(model, 8, integer=integer)(x), wanted)
    assert model[0].integer_bits is None and not torch.equal(model[0].forward(x), wanted)
    with pytest.raises(Qua2SeDiMoError, match="no layer can compute in integers"):
        set_activation_bits(model, 8, integer=True)


@needs_integers
def test_a_packed_model_multiplies_integers_where_it_can() -> None:
    model = dit()
    modules = layer_modules(model)
    values = {name: METHODS["uaq"].quantize(module.weight.detach(), [4])[0] for name, module in modules.items()}
    replace_layers(model, quantized_layers(model, values))
    simulated = output(set_activation_bits(model, 8, integer=False))
    found = output(set_activation_bits(model, 8))
    assert any(isinstance(m, QuantizedLinear) and m.integer_bits == 8 for m in model.modules())
    assert not torch.equal(found, simulated)
    assert float((found - simulated).norm() / simulated.norm()) < 0.01  # a value between two codes may go either way
    kmeans = {name: METHODS["kmeans_a"].quantize(m.weight.detach(), [5])[0] for name, m in modules.items()}
    other = dit()
    replace_layers(other, quantized_layers(other, kmeans))
    with pytest.raises(Qua2SeDiMoError, match="no layer can compute in integers"):
        set_activation_bits(other, 8, integer=True)


def test_is_compiled_without_a_graph_break() -> None:
    model = dit()
    replace_layers(model, quantized_layers(model, dict(mixed(model))))
    set_activation_bits(model, 8)
    expected = output(model)
    model.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(output(model), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("integer", [False, None, True])
@pytest.mark.parametrize("method", ANY_SHAPE)
def test_a_layer_called_with_a_keyword_rounds_its_input(method: str, integer: bool | None) -> None:
    for name, layer in every_layer(method).items():
        if integer and not (name in ("linear", "thin") and method in LEVEL_METHODS and multiplies_exactly(4)):
            continue
        set_activation_bits(nn.ModuleDict({"0": layer}), 8, integer=integer)
        x = inputs_of(layer)
        made = layer(input=x)
        assert torch.equal(made, layer(x)), name
        set_activation_bits(nn.ModuleDict({"0": layer}), None)
        assert not torch.equal(made, layer(input=x)) and torch.equal(layer(input=x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("method", ANY_SHAPE)
def test_no_samples_and_no_tokens_pass_every_layer(method: str, bits: int | None, dtype: torch.dtype) -> None:
    for name, layer in every_layer(method).items():
        layer.to(dtype)
        set_activation_bits(nn.ModuleDict({"0": layer}), bits)
        empty = [inputs_of(layer, batch=0)] + ([torch.empty(2, 0, 16)] if isinstance(layer, nn.Linear) else [])
        for x in empty:
            made, plain = layer(x.to(dtype)), type(layer)(*_geometry(layer)).to(dtype)(x.to(dtype))
            assert made.shape == plain.shape and made.dtype == dtype, name


def _geometry(layer: Any) -> tuple[Any, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size


@needs_integers
def test_no_tokens_pass_integer_layers_of_every_method() -> None:
    for method in LEVEL_METHODS:
        layer = every_layer(method)["linear"]
        set_activation_bits(nn.ModuleDict({"0": layer}), 8, integer=True)
        assert layer.integer_bits == 8
        for shape in ((0, 16), (2, 0, 16)):
            assert layer(torch.empty(shape)).shape == shape
        x = torch.empty(0, 16, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("queries, keys, batch", [(7, 0, 2), (0, 9, 2), (7, 9, 0), (0, 0, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_tokens_is_that_of_pytorch(queries: int, keys: int, batch: int, masked: bool) -> None:
    q, k, v = torch.randn(batch, 4, queries, 8), torch.randn(batch, 4, keys, 8), torch.randn(batch, 4, keys, 8)
    mask = torch.ones(batch, 1, queries, keys, dtype=torch.bool) if masked else None
    found = attention(q, k, v, mask, bits=8)
    assert torch.equal(found, functional.scaled_dot_product_attention(q, k, v, mask))
    assert not found.isnan().any()


@pytest.mark.parametrize("name", ["UNetMotionModel", "WanTransformer3DModel"])
def test_classes_that_call_layers_with_keywords_or_attend_to_nothing(name: str) -> None:
    """AnimateDiff's motion modules name the input; with few text tokens, Wan's image condition has no token."""
    model, given = built(name)
    packed_here(model.eval())
    with torch.no_grad():
        plain = model(**given).sample
        set_activation_bits(model, 8)
        found = model(**given).sample
    assert 0 < (found - plain).norm() < 0.1 * plain.norm()
