"""Row: fixed Gaussian levels and a scale a channel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from qua2sedimo.quantizers import LEVEL_METHODS, dequantize_weight, packed_bytes, quantization_error
from qua2sedimo.quantizers.row import gaussian_levels

ROW = LEVEL_METHODS["row"]
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)


def distortion(levels: np.ndarray) -> float:
    """Mean squared error of a standard Gaussian that goes to the nearest level."""
    cuts = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    held, density = np.diff(norm.cdf(cuts)), -np.diff(norm.pdf(cuts))
    return 1 - float((2 * levels * density - levels**2 * held).sum())


@pytest.mark.parametrize(
    ("bits", "positive", "error"),
    [
        (1, [0.7979], 0.3634),
        (2, [0.4528, 1.510], 0.1175),
        (3, [0.2451, 0.7560, 1.344, 2.152], 0.03454),
        (4, [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
    ],
)
def test_levels_are_those_of_the_published_tables(bits: int, positive: list[float], error: float) -> None:
    """Max, "Quantizing for minimum distortion", 1960, table I."""
    levels = gaussian_levels(bits).astype(np.float64)
    np.testing.assert_allclose(levels[2 ** (bits - 1) :], positive, rtol=5e-4)
    assert distortion(levels) == pytest.approx(error, rel=5e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_symmetric_ascending_and_the_means_of_their_cells(bits: int) -> None:
    levels = gaussian_levels(bits)
    assert levels.dtype == np.float32 and levels.shape == (2**bits,) and not levels.flags.writeable
    assert (np.diff(levels) > 0).all() and np.array_equal(levels, -levels[::-1])
    cuts = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]).astype(np.float64) / 2, [np.inf]])
    held = np.where(cuts[1:] > 0, -np.diff(norm.sf(cuts)), np.diff(norm.cdf(cuts)))
    means = -np.diff(norm.pdf(cuts)) / held
    np.testing.assert_allclose(levels, means, atol=1e-5)


@dtypes
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_gaussian_weights_have_the_least_error_of_any_levels_for_a_gaussian(dtype: torch.dtype, bits: int) -> None:
    size = torch.tensor([[1e-2], [1.0], [30.0]])
    weight = (size * torch.randn(3, 100_000, generator=torch.Generator().manual_seed(bits))).to(dtype)
    back = dequantize_weight(ROW.quantize(weight, [bits])[0])
    errors = [quantization_error(w, b)[1] for w, b in zip(weight, back)]
    assert np.mean(errors) == pytest.approx(distortion(gaussian_levels(bits).astype(np.float64)), rel=0.03)


def test_only_a_scale_a_channel_is_stored() -> None:
    for shape, bits in [((7, 20), 3), ((5, 4, 3, 3), 1), ((1, 1), 8)]:
        value = ROW.quantize(torch.ones(shape), [bits])[0]
        assert {name: tuple(t.shape) for name, t in value.parameters.items()} == {"scale": shape[:1]}
        assert value.nbytes == packed_bytes("row", shape, bits) == math.ceil(math.prod(shape) * bits / 8) + 2 * shape[0]


@dtypes
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_rows_of_zeros_are_exact_and_constant_rows_within_rounding_of_the_scale(dtype: torch.dtype, bits: int) -> None:
    constants = torch.tensor([0.0, 1.0, -0.37, 1e-3, 500.0])
    weight = constants[:, None].expand(5, 12).to(dtype)
    back = dequantize_weight(ROW.quantize(weight, [bits])[0])
    assert torch.equal(back[0], weight[0])
    eps = torch.finfo(torch.bfloat16 if dtype == torch.bfloat16 else torch.float16).eps
    torch.testing.assert_close(back.float(), weight.float(), rtol=eps, atol=1e-8)


def test_a_row_changes_with_the_sign_and_size_of_its_weights_alone() -> None:
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    weight[3] *= 100
    together = dequantize_weight(ROW.quantize(weight, [3])[0])
    alone = torch.cat([dequantize_weight(ROW.quantize(row[None], [3])[0]) for row in weight])
    assert torch.equal(together, alone)
    assert torch.equal(dequantize_weight(ROW.quantize(-weight, [3])[0]), -together)


@dtypes
def test_the_greatest_and_least_weights_of_a_type_stay_finite_and_are_not_lost(dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, 65504.0) if dtype != torch.bfloat16 else torch.finfo(dtype).max
    weight = torch.tensor([[largest, -largest, largest, largest], [1e-6, -1e-6, 2e-6, -3e-6]]).to(dtype)
    for value in ROW.quantize(weight, [1, 2, 4]):
        back = dequantize_weight(value)
        assert torch.isfinite(value.parameters["scale"]).all() and torch.isfinite(back).all()
        assert (back.sign() == weight.sign()).all()
