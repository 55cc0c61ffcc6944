"""What every quantization method promises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods import ANY_SHAPE

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import (
    LEVEL_METHODS,
    METHODS,
    dequantize_weight,
    packed_bytes,
    quantization_error,
    stored_dtype,
    unpack,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
#: Linear, Conv1d, Conv2d, Conv3d, one weight a channel, a vector, one channel.
SHAPES = [(6, 20), (4, 3, 5), (5, 3, 3, 3), (2, 2, 1, 3, 3), (7, 1), (9,), (1, 33)]

WIDTHS = range(1, 9)

methods = pytest.mark.parametrize("method", ANY_SHAPE)
level_methods = pytest.mark.parametrize("method", LEVEL_METHODS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@methods
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_has_the_weights_shape_and_dtype_and_exactly_the_promised_bytes(method, dtype, shape) -> None:
    weight = normal(shape).to(dtype)
    for number, value in zip(WIDTHS, METHODS[method].quantize(weight, WIDTHS)):
        back = dequantize_weight(value)
        assert (value.method, value.number, value.shape, value.dtype) == (method, number, shape, dtype)
        assert value.option == f"{method}-{number}"
        assert (back.shape, back.dtype) == (weight.shape, dtype)
        assert torch.isfinite(back).all()
        assert value.nbytes == packed_bytes(method, shape, number)
        if method in LEVEL_METHODS:
            assert value.codes.numel() == math.ceil(math.prod(shape) * number / 8)
        stored = METHODS[method].parameter_dtypes(stored_dtype(dtype))
        assert {name: tensor.dtype for name, tensor in value.parameters.items()} == stored
        expected = METHODS[method].parameter_shapes(shape, number)
        assert {name: tuple(tensor.shape) for name, tensor in value.parameters.items()} == expected


def test_overhead_is_that_of_the_design() -> None:
    shape, weights, channels = (10, 7, 3, 3), 630, 10
    for bits in WIDTHS:
        codes = math.ceil(weights * bits / 8)
        assert packed_bytes("uaq", shape, bits) == codes + 2 * 16 * channels // 8
        assert packed_bytes("kmeans_c", shape, bits) == codes + 2**bits * 16 * channels // 8
        assert packed_bytes("kmeans_a", shape, bits) == codes + 2**bits * 16 // 8
        assert packed_bytes("row", shape, bits) == codes + 16 * channels // 8
    for rank in (1, 4, 7):
        of_a = channels * (2 * min(4, rank) + max(0, rank - 4) + 2)  # 16 bits, then 8, and a scale
        assert packed_bytes("lowrank", shape, rank) == of_a + rank * (63 + 2)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(ANY_SHAPE), st.integers(0, 10**6), st.sampled_from(DTYPES))
def test_error_falls_as_bits_or_the_rank_rise(method: str, seed: int, dtype: torch.dtype) -> None:
    weight = normal((8, 300), seed).to(dtype)
    errors = [quantization_error(weight, dequantize_weight(v)) for v in METHODS[method].quantize(weight, WIDTHS)]
    for column in zip(*errors):
        assert all(more_bits < fewer_bits for fewer_bits, more_bits in itertools.pairwise(column))


@methods
def test_widths_fitted_together_equal_widths_fitted_alone(method: str) -> None:
    weight = normal((5, 40), 3)
    for together in METHODS[method].quantize(weight, [5, 2, 3]):
        (alone,) = METHODS[method].quantize(weight, [together.number])
        assert torch.equal(together.codes, alone.codes)
        assert all(torch.equal(together.parameters[name], alone.parameters[name]) for name in alone.parameters)


@methods
@dtypes
def test_nan_and_infinity_are_refused_with_their_count(method: str, dtype: torch.dtype) -> None:
    weight = normal((4, 8)).to(dtype)
    weight[0, 1], weight[2, 3], weight[3, 7] = math.nan, math.inf, -math.inf
    with pytest.raises(Qua2SeDiMoError, match="3 NaN or infinite values of 32"):
        METHODS[method].quantize(weight, [4])


@methods
@dtypes
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0,), (3, 0, 2, 2)], ids=str)
def test_empty_tensors_come_back_empty(method: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    (value,) = METHODS[method].quantize(torch.zeros(shape, dtype=dtype), [3])
    assert value.nbytes == packed_bytes(method, shape, 3)
    assert (dequantize_weight(value).shape, dequantize_weight(value).dtype) == (shape, dtype)
    assert quantization_error(torch.zeros(shape), dequantize_weight(value)) == (0.0, 0.0)


@methods
@dtypes
def test_a_strided_weight_is_quantized_like_its_contiguous_copy(method: str, dtype: torch.dtype) -> None:
    weight = normal((12, 9)).to(dtype).T
    strided, whole = (dequantize_weight(METHODS[method].quantize(w, [4])[0]) for w in (weight, weight.contiguous()))
    assert torch.equal(strided, whole)


@methods
def test_the_weight_itself_is_left_alone(method: str) -> None:
    weight = torch.nn.Parameter(normal((3, 10)))
    before = weight.detach().clone()
    value = METHODS[method].quantize(weight, [2])[0]
    assert torch.equal(weight, before)
    assert not dequantize_weight(value).requires_grad


def test_quantization_error_by_hand() -> None:
    weight, other = torch.tensor([[3.0, -4.0], [0.0, 0.0]]), torch.tensor([[1.0, -4.0], [0.0, 1.0]])
    loss, relative = quantization_error(weight, other)
    assert loss == pytest.approx((2**2.4 + 1) / 4)
    assert relative == pytest.approx((4 + 1) / 25)


def test_quantization_error_of_half_precision_does_not_underflow() -> None:
    weight = torch.full((100,), 2e-3, dtype=torch.float16)
    loss, relative = quantization_error(weight, torch.zeros_like(weight))
    assert loss == pytest.approx(float(weight[0]) ** 2.4, rel=1e-5)
    assert relative == pytest.approx(1.0)


@level_methods
@dtypes
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 3, 3), (2, 16), (4, 1)], ids=str)
def test_dequantizing_is_looking_codes_up_at_every_width_and_row_length(method, dtype, shape) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for value in LEVEL_METHODS[method].quantize(weight, WIDTHS):
        codes = unpack(value.codes, value.number, weight.numel()).view(shape[0], -1).long()
        levels = LEVEL_METHODS[method].levels(value.parameters, value.number).expand(shape[0], -1)
        assert torch.equal(dequantize_weight(value), levels.gather(1, codes).to(dtype).view(shape))


@methods
@pytest.mark.parametrize("target", [torch.float16, torch.float32, torch.float64], ids=str)
def test_dequantizing_into_a_span_of_a_larger_weight_changes_only_that(method, target) -> None:
    part = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1)).half()
    (value,) = METHODS[method].quantize(part, [3])
    whole = torch.full((6, 12, 3, 3), 7.0, dtype=target)
    dequantize_weight(value, whole[:, 4:9])
    assert torch.equal(whole[:, 4:9], dequantize_weight(value).to(target))
    assert (whole[:, :4] == 7).all()
    assert (whole[:, 9:] == 7).all()


def test_dequantizing_a_large_weight_on_several_threads_equals_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(700, 500, generator=torch.Generator().manual_seed(1)).half()
    (value,) = METHODS["kmeans_a"].quantize(weight, [3])
    alone = dequantize_weight(value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(dequantize_weight(value), alone)
