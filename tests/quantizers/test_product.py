"""Inner products of quantized weights are those of the decoded weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods import ANY_SHAPE

from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight, inner_product
from qua2sedimo.quantizers.registry import LEVEL_METHODS

SHAPES = [(6, 20), (4, 3, 5), (5, 3, 3, 3), (7, 1), (9,), (1, 33), (3, 0), (40, 512)]


def expected(value: QuantizedWeight, other: torch.Tensor) -> tuple[float, float]:
    """The product in fp64, and the size of what it sums up."""
    terms = dequantize_weight(value).double() * other.double()
    return float(terms.sum()), float(terms.square().sum()) ** 0.5


@pytest.mark.parametrize("method", ANY_SHAPE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@settings(max_examples=12, deadline=None)
@given(shape=st.sampled_from(SHAPES), number=st.integers(1, 8), seed=st.integers(0, 99))
def test_products_are_those_of_the_decoded_weight(method, dtype, shape, number, seed) -> None:
    chance = torch.Generator().manual_seed(seed)
    weight, other = (torch.randn(shape, generator=chance) for _ in range(2))
    (value,) = METHODS[method].quantize(weight.to(dtype), [number])
    found, (wanted, size) = inner_product(value, other), expected(value, other)
    # A·B is not rounded to the weight's type where it is computed by its factors.
    rounding = 0.0 if method != "lowrank" else torch.finfo(dtype).eps
    assert found == pytest.approx(wanted, rel=1e-6, abs=(2e-6 + 2 * rounding) * size + 1e-12)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(ANY_SHAPE)))
def test_methods_of_some_shapes(name: str) -> None:
    shape = (16, 512)
    number = next(n for n in METHODS[name].numbers if METHODS[name].fits(shape, n))
    (value,) = METHODS[name].quantize(torch.randn(shape), [number])
    other = torch.randn(shape)
    wanted, size = expected(value, other)
    assert inner_product(value, other) == pytest.approx(wanted, rel=1e-5, abs=1e-5 * size)


def test_a_slice_of_a_gradient_and_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of a part of a layer are not next to each other in memory; rows are spread over threads."""
    monkeypatch.setattr("qua2sedimo.quantizers.threads._WORTH_SPREADING", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    other = torch.randn(7, 90)[:, 13:50]
    for method in LEVEL_METHODS:
        (value,) = METHODS[method].quantize(torch.randn(7, 37), [3])
        wanted, size = expected(value, other)
        assert inner_product(value, other) == pytest.approx(wanted, rel=1e-6, abs=2e-6 * size)
