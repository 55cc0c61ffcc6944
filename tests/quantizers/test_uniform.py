"""UAQ does what the formula says, on ordinary channels and on odd ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.quantizers import LEVEL_METHODS, dequantize_weight, quantization_error, unpack

UAQ = LEVEL_METHODS["uaq"]
ROUND = {
    torch.float16: lambda x: float(np.float16(x)),
    torch.bfloat16: lambda x: float(torch.tensor(x, dtype=torch.float64).to(torch.bfloat16)),
}


def reference(
    channel: list[float], bits: int, rounded: Callable[[float], float]
) -> tuple[float, dict[tuple[float, int], float]]:
    """Plain Python: the least loss over the shrinks, and the loss of each (scale, zero point) tried.

    Numbers to be rounded are fp32, as in the search: half-way cases fall otherwise in double precision.
    """
    top = 2**bits - 1
    single = np.float32
    losses = {}
    for tenth in range(10, 0, -1):
        high, low = single(tenth / 10) * single(max(channel)), single(tenth / 10) * single(min(channel))
        delta = rounded(float((high - low) / single(top)))
        z = round(float(-low / single(delta)))
        loss = 0.0
        for w in channel:
            q = min(max(round(float(single(w) / single(delta))) + z, 0), top)
            loss += abs(w - (q - z) * delta) ** 2.4
        losses[delta, z] = loss / len(channel)
    return min(losses.values()), losses


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.5, -3.0]),
    st.sampled_from([1e-2, 1.0, 50.0]),
)
def test_agrees_with_a_plain_reference(bits: int, dtype: torch.dtype, seed: int, shift: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(size * (rng.standard_t(4, (2, 24)) + shift)).to(dtype)
    stored = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
    (value,) = UAQ.quantize(weight, [bits])
    # what the file gives back, before it is cast to the weight's type
    codes = unpack(value.codes, bits, weight.numel()).view(2, -1).long()
    back = UAQ.levels(value.parameters, bits).gather(1, codes).double()
    for c in range(2):
        channel = weight[c].double().tolist()
        best, losses = reference(channel, bits, ROUND[stored])
        loss = float((back[c] - weight[c].double()).abs().pow(2.4).mean())
        assert loss == pytest.approx(best, rel=1e-3)
        chosen = (float(value.parameters["scale"][c]), int(value.parameters["zero"][c]))
        assert losses[chosen] == pytest.approx(best, rel=1e-3)


def test_the_shrink_is_found_where_full_range_is_worse() -> None:
    """One far value: at 2 bits the full range would round all others to one level."""
    channel = torch.cat([torch.linspace(-1, 1, 400), torch.tensor([2.5])])[None]
    (value,) = UAQ.quantize(channel, [2])
    assert float(value.parameters["scale"][0]) < 0.9 * 3.5 / 3


def test_the_search_is_not_blind_to_errors_that_vanish_in_half_precision() -> None:
    """|e|^2.4 of these errors is below the least fp16 number; the same channel scaled up is the answer."""
    large = torch.randn(4, 200, generator=torch.Generator().manual_seed(0)).half()
    (expected,), (found,) = UAQ.quantize(large, [3]), UAQ.quantize(large * 2**-8, [3])
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.parameters["scale"], expected.parameters["scale"] * 2**-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@settings(max_examples=40, deadline=None)
@given(constant=st.floats(-6e4, 6e4, width=16), bits=st.integers(1, 8))
def test_a_constant_channel_is_exact(dtype: torch.dtype, constant: float, bits: int) -> None:
    """Also in fp32, if the constant is a number of the stored type."""
    weight = torch.stack([torch.full((5,), constant), torch.linspace(-1, 1, 5)]).to(dtype)
    (value,) = UAQ.quantize(weight, [bits])
    assert torch.equal(dequantize_weight(value)[0], weight[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@settings(max_examples=20, deadline=None)
@given(constants=st.lists(st.floats(-1e3, 1e3, width=16), min_size=1, max_size=6))
def test_one_weight_per_channel_is_exact(dtype: torch.dtype, constants: list[float]) -> None:
    weight = torch.tensor(constants).to(dtype)[:, None]
    assert torch.equal(dequantize_weight(UAQ.quantize(weight, [2])[0]), weight)


@pytest.mark.parametrize("center", [1.0, -1.0, 40.0])
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_nearly_constant_channel_far_from_zero_stays_where_it_is(center: float, spread: float, bits: int) -> None:
    weight = center + spread * torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    error = (dequantize_weight(UAQ.quantize(weight, [bits])[0]) - weight).abs().max()
    assert error <= max(spread, 1e-3 * abs(center))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e-4, 1e-6])
def test_tiny_weights_are_not_lost(dtype: torch.dtype, size: float) -> None:
    """Down to 10⁻⁶ a 16-bit scale still tells the weights of a channel apart."""
    weight = (size * torch.randn(4, 100, generator=torch.Generator().manual_seed(1))).to(dtype)
    back = dequantize_weight(UAQ.quantize(weight, [4])[0])
    error = (back.double() - weight.double()).square().sum() / weight.double().square().sum()
    assert error < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_least_numbers_of_a_type_give_no_nan(dtype: torch.dtype) -> None:
    least = torch.finfo(dtype).smallest_normal
    weight = least * torch.randn(3, 30, generator=torch.Generator().manual_seed(2)).to(dtype)
    for value in UAQ.quantize(weight, [2, 8]):
        assert torch.isfinite(dequantize_weight(value)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_near_the_end_of_half_precision_stay_finite(dtype: torch.dtype) -> None:
    weight = torch.tensor([[-30000.0, 30000.0, 0.0, 10000.0]]).to(dtype)
    for value in UAQ.quantize(weight, [2, 4]):
        assert torch.isfinite(value.parameters["scale"]).all()
        assert torch.isfinite(dequantize_weight(value)).all()
        assert quantization_error(weight, dequantize_weight(value))[1] < 0.2


def test_channels_do_not_influence_one_another() -> None:
    weight = torch.randn(6, 30, generator=torch.Generator().manual_seed(4))
    together = dequantize_weight(UAQ.quantize(weight, [3])[0])
    alone = torch.cat([dequantize_weight(UAQ.quantize(row[None], [3])[0]) for row in weight])
    assert torch.equal(together, alone)
