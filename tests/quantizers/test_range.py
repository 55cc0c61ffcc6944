"""Finite weights of any magnitude come back finite, with an error no larger than documented; or are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods import ANY_SHAPE

from qua2sedimo.bank import OptionError
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS, Moment, dequantize_weight, quantization_error, stored_dtype

#: Unit roundoff and smallest number of the types that parameters are stored in.
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LEAST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126}
LARGEST = {torch.float16: 65504.0, torch.bfloat16: torch.finfo(torch.bfloat16).max, torch.float32: 65504.0}

kinds = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
methods = pytest.mark.parametrize("method", ANY_SHAPE)


def documented(weight: np.ndarray, stored: torch.dtype, bits: int) -> float:
    """The bound on the root mean square error in the docstring of ``LevelMethod``."""
    extent = max(weight.max(), 0.0) - min(weight.min(), 0.0)
    return extent / (2**bits - 1) + 2 * UNIT[stored] * extent + 2**bits * LEAST[stored]


@methods
@kinds
@settings(max_examples=60, deadline=None)
@given(data=st.data(), power=st.integers(-149, 127), bits=st.integers(1, 8))
def test_a_finite_weight_stays_finite_and_near(method: str, dtype: torch.dtype, data, power: int, bits: int) -> None:
    mantissas = data.draw(st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=12))
    raw = torch.tensor(mantissas, dtype=torch.float64) * 2.0**power
    weight = raw.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).reshape(2, 3, 2)
    assert torch.isfinite(weight).all()
    (value,) = METHODS[method].quantize(weight, [bits])
    back = dequantize_weight(value)
    assert torch.isfinite(back).all()
    assert all(torch.isfinite(p).all() for p in value.parameters.values())
    true, error = weight.double().numpy(), (back.double() - weight.double()).numpy()
    groups = {"kmeans_a": [(true, error)], "row": [], "lowrank": []}.get(method, zip(true, error))
    for rows, errors in groups if bits > 1 else ():
        assert math.sqrt(float((errors**2).mean())) <= documented(rows, stored_dtype(dtype), bits) * (1 + 1e-6)
    loss, relative = quantization_error(weight, back)
    square = float((true**2).sum())
    assert math.isfinite(loss) and math.isfinite(relative)
    negligible = 1e-9 * float(np.abs(true).max())  # errors that far below the largest weight may have no number
    assert loss == pytest.approx(float((np.abs(error) ** 2.4).mean()), rel=1e-4, abs=negligible**2.4 + 1e-300)
    assert relative == pytest.approx(float((error**2).sum()) / square if square else 0.0, rel=1e-4, abs=1e-18)


#: The least positive numbers (denormal and normal) and the largest, of both signs, and ordinary ones among them.
EXTREMES = {
    "largest": "+M", "largest of both signs": "+M -M", "near the largest": "M .99M .5M", "least": "+d -d 3d",
    "mixed": "M -M d -d t 1 0", "negative": "-M -.9M", "least normal": "t -t d", "one that is large": "M 1 -1 .01",
}  # fmt: skip


def extreme(words: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight of such numbers, each at least once."""
    least = float(torch.tensor(1, dtype=torch.int16).view(dtype))
    units = {"M": torch.finfo(dtype).max, "t": torch.finfo(dtype).tiny, "d": least}
    numbers = []
    for word in words.split():
        unit, factor = (units[word[-1]], word[:-1]) if word[-1] in units else (1.0, word)
        numbers.append(unit * float({"": "1", "+": "1", "-": "-1"}.get(factor, factor)))
    chance = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, len(numbers), (math.prod(shape),), generator=chance)
    drawn[: len(numbers)] = torch.arange(len(numbers))
    return torch.tensor(numbers, dtype=torch.float64)[drawn].to(dtype).reshape(shape)


@methods
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("words", EXTREMES.values(), ids=EXTREMES)
def test_the_ends_of_the_range_come_back_finite_with_their_true_errors(
    method: str, dtype: torch.dtype, words: str
) -> None:
    weight, chance = extreme(words, dtype, (3, 8)), torch.Generator().manual_seed(1)
    assert torch.isfinite(weight).all()
    inputs = torch.randn(20, 8, generator=chance)
    moment = Moment((inputs.T @ inputs / 20,))
    true, h = weight.double(), moment.blocks[0].double()
    for observed in (None, moment):
        numbers = [1, 3] if method == "lowrank" else [1, 2, 4, 8]
        for number, value in zip(numbers, METHODS[method].quantize(weight, numbers, observed)):
            back = dequantize_weight(value)
            assert torch.isfinite(back).all(), number
            assert all(torch.isfinite(p).all() for p in value.parameters.values()), number
            difference = true - back.double()
            found = OptionError(*quantization_error(weight, back))
            square = float(true.square().sum())
            assert found.relative_mse == pytest.approx(float(difference.square().sum()) / square, rel=1e-4, abs=1e-18)
            errors, output = moment.output_errors(weight, back)
            expected = (difference @ h * difference).sum(dim=1)
            power = float((true @ h * true).sum())
            assert output == pytest.approx(float(expected.sum()) / power, rel=1e-3, abs=1e-9)
            largest = float(expected.max())
            assert errors.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-6 * largest)


@methods
@pytest.mark.parametrize("largest", [65536.0, 1e6, 3e38])
def test_fp32_weights_beyond_the_stored_type_are_refused_by_every_method(method: str, largest: float) -> None:
    weight = torch.linspace(-1, 1, 24).reshape(4, 6)
    weight[2, 3] = largest
    with pytest.raises(Qua2SeDiMoError, match="1 of 24 weights are beyond ±65504, the range of float16") as refused:
        METHODS[method].quantize(weight, [4])
    assert "bfloat16" in str(refused.value.remedy)
    (value,) = METHODS[method].quantize(weight.bfloat16(), [4])
    assert torch.isfinite(dequantize_weight(value)).all()


@methods
def test_scaling_by_a_power_of_two_scales_the_result(method: str) -> None:
    """Also where the range of a channel has no number in fp32."""
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    for bits in (2, 5):
        small = dequantize_weight(METHODS[method].quantize(weight, [bits])[0])
        large = dequantize_weight(METHODS[method].quantize(weight * 2.0**125, [bits])[0])
        assert torch.equal(large, small * 2.0**125)
