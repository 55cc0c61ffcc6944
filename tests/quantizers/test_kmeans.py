"""K-Means codebooks are optimal: checked against an independent solver."""

from __future__ import annotations

import kmeans1d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qua2sedimo.quantizers import LEVEL_METHODS, METHODS, QuantizedWeight, dequantize_weight, unpack
from qua2sedimo.quantizers.lookup import nearest_rows
from qua2sedimo.quantizers.optimal import optimal_codebooks_rows, optimal_codebooks_weighted

PER_CHANNEL, PER_TENSOR = METHODS["kmeans_c"], METHODS["kmeans_a"]


def squared_error(values: np.ndarray, centers: np.ndarray) -> float:
    return float(((values.reshape(-1, 1).astype(np.float64) - centers) ** 2).min(axis=1).sum())


def oracle(values: np.ndarray, clusters: int) -> np.ndarray:
    flat = values.reshape(-1).astype(np.float64)
    return np.array(kmeans1d.cluster(flat, min(clusters, flat.size)).centroids)


def error_of(value: QuantizedWeight, weight: torch.Tensor) -> float:
    return float((dequantize_weight(value).double() - weight.double()).square().sum())


def decoded(value: QuantizedWeight) -> torch.Tensor:
    """What the file holds, before it is cast to the weight's type."""
    codes = unpack(value.codes, value.number, int(np.prod(value.shape))).view(value.shape[0], -1)
    levels = LEVEL_METHODS[value.method].levels(value.parameters, value.number)
    return levels.expand(value.shape[0], -1).gather(1, codes.long()).double()


def error_per_channel(weight: torch.Tensor, bits: int) -> float:
    return float((decoded(PER_CHANNEL.quantize(weight, [bits])[0]) - weight.double()).square().sum())


def codebooks_of_rows(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Codebooks of sorted rows, side by side."""
    found = np.empty((len(values), sizes.sum()))
    optimal_codebooks_rows(values, sizes, found)
    return found


def heavy_tailed(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, shape)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 120),
    clusters=st.integers(1, 40),
    shift=st.sampled_from([0.0, 1e3]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_codebooks_reach_the_oracles_squared_error(
    seed: int, count: int, clusters: int, shift: float, scale: float
) -> None:
    values = np.sort(scale * (heavy_tailed((count,), seed) + shift))
    centers = codebooks_of_rows(values[None], np.array([clusters]))[0]
    allowed = squared_error(values, oracle(values, clusters))
    noise = 1e-12 * count * float(np.abs(values).max()) ** 2 * 1e-3
    assert squared_error(values, centers) <= allowed * (1 + 1e-6) + noise


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["even", "mirrored", "integers", "clumps", "outlier"]),
    st.integers(0, 2**32 - 1),
    st.integers(3, 90),
    st.integers(2, 40),
)
def test_optimal_where_many_clusterings_cost_the_same(kind: str, seed: int, count: int, clusters: int) -> None:
    """Ties, where no penalty gives just so many clusters and two clusterings are spliced."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=count)
    values = {
        "even": np.arange(count) * 1.0,
        "mirrored": np.concatenate([half, -half]),
        "integers": rng.integers(0, 12, count) * 1.0,
        "clumps": rng.integers(0, 3, count) + 1e-4 * half,
        "outlier": np.append(half, 1e4),
    }[kind]
    values = np.sort(values)
    centers = codebooks_of_rows(values[None], np.array([clusters]))[0]
    best = squared_error(values, oracle(values, clusters))
    assert squared_error(values, centers) <= best * (1 + 1e-9) + 1e-12 * float((values**2).sum())


def test_long_channels_of_weights_reach_the_oracle_at_every_size() -> None:
    values = np.sort(heavy_tailed((1, 3000), 7).astype(np.float16).astype(np.float32), axis=1)
    sizes = np.array([2**b for b in range(1, 9)])
    centers = np.split(codebooks_of_rows(values, sizes)[0], np.cumsum(sizes)[:-1])
    for size, part in zip(sizes, centers):
        assert squared_error(values, part) == pytest.approx(squared_error(values, oracle(values, size)), rel=1e-9)


def test_all_sizes_come_out_in_the_order_asked() -> None:
    values = np.sort(heavy_tailed((3, 90), 1), axis=1)
    sizes = np.array([8, 2, 4])
    together = codebooks_of_rows(values, sizes)
    alone = np.concatenate([codebooks_of_rows(values, np.array([s])) for s in sizes], axis=1)
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 9)), min_size=1, max_size=25), st.integers(1, 12))
def test_weighted_codebook_equals_that_of_the_values_repeated(pairs: list[tuple[int, int]], clusters: int) -> None:
    counts = dict(pairs)
    values = np.array(sorted(counts), dtype=np.float64)
    repeats = np.array([counts[v] for v in values])
    centers = optimal_codebooks_weighted(values, repeats.astype(np.float64), np.array([clusters]))
    everything = np.repeat(values, repeats)
    best = squared_error(everything, oracle(everything, clusters))
    assert squared_error(everything, centers) == pytest.approx(best, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8, 64, 256]))
def test_assignment_is_to_the_nearest_entry_the_lower_value_on_a_tie(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-40, 40, (2, 30)).astype(np.float32) / 2
    books = np.sort(rng.integers(-20, 20, (2, size)), axis=1).astype(np.float32)
    codes = np.empty(rows.shape, dtype=np.uint8)
    nearest_rows(rows, books, codes)
    for row, book, code in zip(rows, books, codes):
        np.testing.assert_array_equal(book[code], book[np.abs(row[:, None] - book).argmin(axis=1)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_rounding_the_codebook_costs_at_most_a_twentieth_percent(dtype: torch.dtype, bits: int) -> None:
    weight = torch.from_numpy(heavy_tailed((6, 400), 2)).to(dtype)
    rows = weight.float().numpy()
    best = sum(squared_error(row, oracle(row, 2**bits)) for row in rows)
    assert best <= error_per_channel(weight, bits) * (1 + 1e-6)
    assert error_per_channel(weight, bits) <= best * 1.0005
    (value,) = PER_TENSOR.quantize(weight, [bits])
    error = float((decoded(value) - weight.double()).square().sum())
    best = squared_error(rows, oracle(rows, 2**bits))
    assert best * (1 - 1e-6) <= error <= best * 1.0005


@pytest.mark.parametrize("method", ["kmeans_c", "kmeans_a"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(1, 4))
def test_codebooks_that_need_no_rounding_reach_the_optimum(
    method: str, dtype: torch.dtype, seed: int, bits: int
) -> None:
    """Pairs a ± 1 around well separated even numbers: every mean is a small whole number."""
    rng = np.random.default_rng(seed)
    centers = 8.0 * rng.permutation(16)[: 2**bits]
    row = np.concatenate([centers - 1, centers + 1])
    weight = torch.from_numpy(np.stack([rng.permutation(row) for _ in range(3)])).to(dtype)
    (value,) = METHODS[method].quantize(weight, [bits])
    best = sum(squared_error(r, oracle(r, 2**bits)) for r in weight.double().numpy())
    assert best == row.size * 3
    assert error_of(value, weight) == best


@pytest.mark.parametrize("method", ["kmeans_c", "kmeans_a"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), bits=st.integers(1, 8))
def test_no_more_distinct_values_than_levels_are_exact(method: str, dtype: torch.dtype, data, bits: int) -> None:
    """Constant tensors and repeated values among them; every value is a number of the stored type."""
    palette = data.draw(st.lists(st.integers(-128, 128), min_size=1, max_size=2**bits))
    chosen = data.draw(st.lists(st.sampled_from(palette), min_size=12, max_size=12))
    weight = torch.tensor(chosen, dtype=torch.float32).reshape(2, 3, 2).to(dtype) / 64
    back = dequantize_weight(METHODS[method].quantize(weight, [bits])[0])
    torch.testing.assert_close(back, weight, rtol=0, atol=1e-12)  # a zero may come back as a rounding error


@pytest.mark.parametrize("method", ["kmeans_c", "kmeans_a"])
@settings(max_examples=20, deadline=None)
@given(constant=st.floats(-6e4, 6e4, width=16), bits=st.integers(1, 8))
def test_a_constant_tensor_is_exact(method: str, constant: float, bits: int) -> None:
    for dtype in (torch.float16, torch.float32):
        weight = torch.full((2, 9), constant, dtype=dtype)
        assert torch.equal(dequantize_weight(METHODS[method].quantize(weight, [bits])[0]), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_one_weight_per_channel_is_exact_per_channel(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 1, generator=torch.Generator().manual_seed(0)).half().to(dtype)
    (value,) = PER_CHANNEL.quantize(weight, [2])
    assert torch.equal(dequantize_weight(value), weight)


@pytest.mark.parametrize("method", ["kmeans_c", "kmeans_a"])
def test_codebooks_are_ascending(method: str) -> None:
    weight = torch.from_numpy(heavy_tailed((4, 100), 5)).half()
    for value in METHODS[method].quantize(weight, [2, 4, 8]):
        assert (value.parameters["codebook"].float().diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("method", ["kmeans_c", "kmeans_a"])
@pytest.mark.parametrize("center", [1.0, -40.0])
def test_nearly_constant_values_far_from_zero_keep_their_optimum(method: str, center: float) -> None:
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(center + 1e-2 * rng.standard_normal((2, 300))).half()
    (value,) = METHODS[method].quantize(weight, [2])
    groups = [weight] if method == "kmeans_a" else list(weight)
    rounded = [(g.float().numpy(), oracle(g.float().numpy(), 4).astype(np.float16).astype(float)) for g in groups]
    best = sum(squared_error(values, centers) for values, centers in rounded)
    assert error_of(value, weight) <= best * 1.05


def test_per_tensor_fp32_with_a_far_outlier_stays_near_the_optimum() -> None:
    values = np.random.default_rng(3).standard_normal(3000).astype(np.float32)
    values[17] = 200.0
    (value,) = PER_TENSOR.quantize(torch.from_numpy(values).reshape(30, 100), [4])
    best = squared_error(values, oracle(values, 16))
    assert error_of(value, torch.from_numpy(values).reshape(30, 100)) <= best * 1.0005
