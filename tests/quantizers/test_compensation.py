"""Rounding that compensates: never worse than nearest, near the best there is, and what its formulas say."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods import ANY_SHAPE

from qua2sedimo.options import Option
from qua2sedimo.quantizers import (
    LEVEL_METHODS,
    METHODS,
    Moment,
    QuantizedWeight,
    compensation,
    dequantize_weight,
    unpack,
)
from qua2sedimo.quantizers.compensation import Strips
from qua2sedimo.quantizers.grids import PAIRS, LevelGrid
from qua2sedimo.quantizers.moment import DAMPING
from qua2sedimo.quantizers.row import gaussian_levels

level_methods = pytest.mark.parametrize("method", LEVEL_METHODS)
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
KINDS = ("decaying", "mild", "plain", "few inputs seen", "one direction", "some inputs zero", "two blocks", "outlier")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def second_moment(n: int, seed: int = 0, samples: int = 0, decay: float = 2.0) -> torch.Tensor:
    """Of inputs whose directions have variances over ``decay`` powers of ten."""
    samples = samples or 4 * n
    turned = torch.linalg.qr(normal(n, n, seed=seed + 1))[0]
    x = normal(samples, n, seed=seed) * torch.logspace(0, -decay / 2, n) @ turned
    return x.T @ x / samples


def moment_of(kind: str, n: int, seed: int) -> Moment:
    if kind == "few inputs seen":
        return Moment((second_moment(n, seed, samples=max(1, n // 3)),))
    if kind == "one direction":
        return Moment((torch.ones(n, n),))
    if kind == "some inputs zero":
        seen = (torch.arange(n) % 3 > 0).float()
        seen[-1] = 1
        return Moment((second_moment(n, seed) * seen * seen[:, None],))
    if kind == "two blocks":
        half = max(1, n // 2)
        return Moment(tuple(second_moment(k, seed + k) for k in (half, n - half) if k))
    if kind == "outlier":
        size = torch.ones(n)
        size[n // 2] = 100
        return Moment((second_moment(n, seed) * size * size[:, None],))
    return Moment((second_moment(n, seed, decay={"decaying": 3.0, "mild": 1.0, "plain": 0.0}[kind]),))


def errors(value: QuantizedWeight, weight: torch.Tensor, moment: Moment) -> torch.Tensor:
    """d·H·dᵀ of each row, float64."""
    d = (dequantize_weight(value).double() - weight.double()).view(weight.shape[0], -1)
    return (d @ torch.block_diag(*(block.double() for block in moment.blocks)) * d).sum(dim=1)


def noise(value: QuantizedWeight, weight: torch.Tensor, moment: Moment) -> torch.Tensor:
    """What fp32 may get wrong about these errors."""
    d = (dequantize_weight(value).double() - weight.double()).view(weight.shape[0], -1)
    size = torch.cat([block.double().abs().sum(dim=1) for block in moment.blocks])
    return 1e-5 * (d.square() * size).sum(dim=1)


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(list(LEVEL_METHODS)),
    bits=st.integers(1, 8),
    n=st.sampled_from([1, 2, 7, 40]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    heavy=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_output_errors_never_rise_against_nearest_rounding(method, bits, n, kind, dtype, heavy, seed) -> None:
    weight = normal(5, n, seed=seed)
    weight = (weight**3 if heavy else weight).to(dtype)
    weight[3], weight[4] = 0, 0.5
    moment = moment_of(kind, n, seed)
    (nearest,), (made,) = (METHODS[method].quantize(weight, [bits], m) for m in (None, moment))
    assert made.nbytes == nearest.nbytes
    before, after = errors(nearest, weight, moment), errors(made, weight, moment)
    allowed = noise(nearest, weight, moment) + noise(made, weight, moment) + 1e-12
    assert after.sum() <= before.sum() + allowed.sum()
    if method != "kmeans_a":  # whose rows share their levels
        assert (after <= before + allowed).all()


@level_methods
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_output_errors_fall_a_lot_where_inputs_are_correlated(method: str, bits: int) -> None:
    weight, moment = normal(32, 96, seed=1), moment_of("decaying", 96, 3)
    (nearest,), (made,) = (METHODS[method].quantize(weight, [bits], m) for m in (None, moment))
    assert errors(made, weight, moment).sum() < 0.7 * errors(nearest, weight, moment).sum()


@level_methods
@pytest.mark.parametrize("bits", [1, 3])
def test_factors_of_large_layers_are_tried_on_some_rows_at_little_loss(
    method: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one row, which few others resemble, makes most of the error."""
    weight, moment = normal(96, 64, seed=4), moment_of("decaying", 64, 6)
    weight[37] *= 20
    monkeypatch.setattr(compensation, "_LARGE", 1)
    (nearest,), (made,) = (METHODS[method].quantize(weight, [bits], m) for m in (None, moment))
    monkeypatch.setattr(compensation, "_SAMPLED", 1)
    monkeypatch.setattr(compensation, "_KEPT", 8)
    (whole,) = METHODS[method].quantize(weight, [bits], moment)
    assert errors(made, weight, moment).sum() <= errors(nearest, weight, moment).sum()
    assert errors(made, weight, moment).sum() <= 1.1 * errors(whole, weight, moment).sum()


def least_by_trying(weight: np.ndarray, h: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Of each row, the least d·H·dᵀ over all codes for its ``levels`` [rows, K]."""
    n = weight.shape[1]
    codes = np.array(list(itertools.product(range(levels.shape[1]), repeat=n)))
    found = []
    for row, book in zip(weight, levels):
        d = book[codes] - row
        found.append(np.einsum("ki,ij,kj->k", d, h, d).min())
    return np.array(found)


@pytest.mark.parametrize(("kind", "most"), [("plain", 1.05), ("mild", 1.15), ("decaying", 2), ("few inputs seen", 2.5)])
@pytest.mark.parametrize(("bits", "n"), [(1, 3), (1, 6), (2, 3), (2, 5)])
def test_fixed_levels_come_near_the_best_of_all_codes(bits: int, n: int, kind: str, most: float) -> None:
    """Over 60 rows, their error is at most ``most`` times the least possible."""
    weight, moment = normal(60, n, seed=n), moment_of(kind, n, 5)
    levels = torch.tensor(gaussian_levels(bits))[None].expand(60, -1).contiguous()
    (factor,) = moment.factors
    # Best under the moment that it is given, which is damped.
    h = np.zeros((n, n))
    h[np.ix_(factor.order, factor.order)] = factor.moment.double().numpy()
    least = least_by_trying(weight.double().numpy(), h, levels.double().numpy())
    codes = Strips(weight, factor).rounded(LevelGrid(levels), 3)
    d = torch.gather(levels, 1, codes.long()).double().numpy() - weight.double().numpy()
    found = np.einsum("ri,ij,rj->r", d, h, d)
    assert (found >= least * (1 - 1e-6)).all()
    assert found.sum() <= most * least.sum()


@pytest.mark.parametrize("n", [3, 40, 128, 129, 300])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_descent_never_raises_the_error_that_it_descends(bits: int, n: int) -> None:
    """Which is that under the damped moment. Layers of one strip, of several, and with one of a single column."""
    weight, moment = normal(20, n, seed=n), moment_of("decaying", n, 5)
    levels = torch.tensor(gaussian_levels(bits)) * torch.linspace(0.7, 1.3, 20)[:, None]
    (factor,) = moment.factors
    found = []
    for compiled in (True, False):
        strips = Strips(weight, factor)
        strips._compiled = compiled
        for sweeps in range(4):
            d = torch.gather(levels, 1, strips.rounded(LevelGrid(levels), sweeps).long()) - weight
            d = d[:, factor.order].double()
            found.append((d @ factor.moment.double() * d).sum(dim=1))
    for own in (found[:4], found[4:]):
        assert all((after <= before * (1 + 1e-4)).all() for before, after in itertools.pairwise(own))
        assert n < 40 or own[3].sum() < 0.97 * own[0].sum()


@pytest.mark.parametrize(("kind", "most"), [("plain", 1.05), ("mild", 1.25)])
@pytest.mark.parametrize(("bits", "n"), [(1, 4), (1, 6), (2, 4), (2, 5)])
def test_row_comes_near_the_best_of_all_codes_and_tried_scales(bits: int, n: int, kind: str, most: float) -> None:
    weight, moment = normal(40, n, seed=n + 1), moment_of(kind, n, 8)
    (nearest,), (made,) = (METHODS["row"].quantize(weight, [bits], m) for m in (None, moment))
    scales = nearest.parameters["scale"].double().numpy()[:, None]
    h, levels = moment.blocks[0].double().numpy(), gaussian_levels(bits).astype(np.float64)
    tried = (1.0, 0.9, 0.8, 0.7, 1.1, 0.6, 1.25, 1.4, 1.6)
    least = np.min([least_by_trying(weight.double().numpy(), h, f * scales * levels) for f in tried], axis=0)
    assert float(errors(made, weight, moment).sum()) <= most * least.sum()


def gptq(weight: np.ndarray, h: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Codes by the published formulas, in float64, one column after the other."""
    order = np.argsort(-np.diag(h), kind="stable")
    h = h[np.ix_(order, order)] + DAMPING * np.diag(h).mean() * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    left, codes = weight[:, order].copy(), np.zeros(weight.shape, dtype=np.int64)
    for j in range(len(h)):
        code = np.abs(left[:, j, None] - levels).argmin(axis=1)
        error = (left[:, j] - np.take_along_axis(levels, code[:, None], 1)[:, 0]) / upper[j, j]
        left[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
        codes[:, order[j]] = code
    return codes


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_codes_are_those_of_the_published_formulas(n: int, bits: int) -> None:
    """Also across the ends of strips; a value midway between two levels may go either way, and the rest of its row."""
    rows = 12
    weight, moment = normal(rows, n, seed=n), moment_of("decaying", n, 2)
    levels = torch.tensor(gaussian_levels(bits)) * torch.linspace(0.7, 1.3, rows)[:, None]
    (factor,) = moment.factors
    expected = gptq(weight.double().numpy(), moment.blocks[0].double().numpy(), levels.double().numpy())
    codes = Strips(weight, factor).rounded(LevelGrid(levels), 0)
    assert (codes.numpy() == expected).all(axis=1).sum() >= rows - 1
    batched = Strips(weight, factor)
    batched._compiled = False
    assert (batched.rounded(LevelGrid(levels), 0) == codes).all(dim=1).sum() >= rows - 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_compiled_kernels_equal_tensor_operations(bits: int, shared: bool) -> None:
    rows, n = 20, 64
    (factor,) = moment_of("plain", n, 4).factors
    levels = torch.tensor(gaussian_levels(bits)) * (1 if shared else torch.linspace(0.5, 1.5, rows)[:, None])
    levels = levels.view(-1, 2**bits).contiguous()
    middles = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    weight = normal(rows, n, seed=9)
    (rounding, descent) = PAIRS
    (errors_1, codes_1), (errors_2, codes_2) = (f(weight.clone(), factor.feedback, levels, middles) for f in rounding)
    same = (codes_1 == codes_2).all(dim=1)
    assert same.sum() >= rows - 1
    torch.testing.assert_close(errors_1[same], errors_2[same], rtol=1e-3, atol=1e-5)
    held = [(codes_1 // 2).clone() for _ in descent]
    gradient = (weight - torch.gather(levels.expand(rows, -1), 1, held[0].long())) @ factor.moment
    steps, counts = zip(*(f(gradient.clone(), factor.moment, levels, middles, c) for f, c in zip(descent, held)))
    same = (held[0] == held[1]).all(dim=1)
    assert same.sum() >= rows - 1
    torch.testing.assert_close(steps[0][same], steps[1][same])
    assert counts[0] > 0 and abs(counts[0] - counts[1]) <= n


def same_value(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    names = one.parameters.keys() | other.parameters.keys()
    return torch.equal(one.codes, other.codes) and all(
        torch.equal(one.parameters[name], other.parameters[name]) for name in names
    )


@pytest.mark.parametrize("method", ANY_SHAPE)
@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
def test_a_moment_from_which_nothing_can_be_learned_counts_as_none(method: str, wrong: float) -> None:
    weight, block = normal(6, 10), second_moment(10) * 0
    block[3, 4] = wrong
    moment = Moment((block,))
    assert not moment.usable and moment.problem
    (given,), (none,) = (METHODS[method].quantize(weight, [3], m) for m in (moment, None))
    assert same_value(given, none)


@pytest.mark.parametrize("method", ANY_SHAPE)
@pytest.mark.parametrize("power", [-120, -60, 60, 110])
def test_the_size_of_the_inputs_does_not_matter(method: str, power: int) -> None:
    weight, block = normal(6, 30), second_moment(30)
    for number in (1, 3, 6):
        (plain,), (sized,) = (
            METHODS[method].quantize(weight, [number], Moment((b,))) for b in (block, block * 2.0**power)
        )
        assert same_value(plain, sized)


@level_methods
def test_blocks_are_one_moment_with_zeros_between(method: str) -> None:
    """Damping is a share of a block's mean diagonal, so both have the same here."""
    blocks = [second_moment(n, seed=n) for n in (20, 9, 31)]
    blocks = [block / block.diagonal().mean() for block in blocks]
    weight = normal(8, 60)
    for bits in (1, 4):
        (apart,), (whole,) = (
            METHODS[method].quantize(weight, [bits], Moment(given))
            for given in (tuple(blocks), (torch.block_diag(*blocks),))
        )
        moment = Moment(tuple(blocks))
        found, expected = errors(apart, weight, moment).sum(), errors(whole, weight, moment).sum()
        assert found == pytest.approx(float(expected), rel=0.02)


def test_errors_under_a_moment_in_blocks_are_those_under_the_whole() -> None:
    blocks = tuple(second_moment(n, seed=n) for n in (4, 3, 5))
    moment, whole = Moment(blocks), torch.block_diag(*blocks)
    assert moment.inputs == 12 and moment.spans() == [(0, 4), (4, 7), (7, 12)]
    d = normal(3, 12)
    torch.testing.assert_close(moment.errors(d), (d @ whole * d).sum(dim=1).double())


@level_methods
@dtypes
@pytest.mark.parametrize("n", [129, 260])
def test_weights_wider_than_a_strip(method: str, dtype: torch.dtype, n: int) -> None:
    weight, moment = normal(9, n).to(dtype), moment_of("decaying", n, 1)
    (nearest,), (made,) = (METHODS[method].quantize(weight, [3], m) for m in (None, moment))
    assert dequantize_weight(made).dtype == dtype
    assert errors(made, weight, moment).sum() < 0.8 * errors(nearest, weight, moment).sum()
    assert int(unpack(made.codes, 3, 9 * n).max()) == 7


@level_methods
@dtypes
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-5, 3e4, 1e37])
def test_scales_at_the_ends_of_their_type_stay_finite(method: str, dtype: torch.dtype, size: float) -> None:
    largest = min(torch.finfo(dtype).max, 65504.0 if dtype == torch.float32 else math.inf)
    weight = (normal(6, 24).clamp(-2, 2).double() * size).clamp(-largest, largest).to(dtype)
    moment = moment_of("decaying", 24, 6)
    for bits in (1, 2, 5):
        (nearest,), (made,) = (METHODS[method].quantize(weight, [bits], m) for m in (None, moment))
        assert torch.isfinite(dequantize_weight(made)).all()
        assert all(torch.isfinite(p).all() for p in made.parameters.values())
        before, after = errors(nearest, weight, moment).sum(), errors(made, weight, moment).sum()
        assert after <= before * (1 + 1e-5)


@level_methods
def test_convolutions_are_rounded_as_their_unfolded_weight(method: str) -> None:
    weight, moment = normal(6, 4, 3, 3), moment_of("decaying", 36, 2)
    (conv,), (flat,) = (METHODS[method].quantize(w, [3], moment) for w in (weight, weight.view(6, 36)))
    assert same_value(conv, flat) and conv.shape == (6, 4, 3, 3)


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("option", ["row-3", "kmeans_a-3", "lowrank-4"])
def test_a_moment_and_its_factors_are_freed_with_the_last_reference(option: str, scale: float) -> None:
    """Not when Python next looks for cycles: between two layers there are few objects, and gigabytes."""
    one, x = Option.parse(option), torch.randn(200, 24, generator=torch.Generator().manual_seed(3))
    moment = Moment((scale * x.T @ x / 200,))
    gone = weakref.ref(moment)
    gc.disable()
    try:
        METHODS[one.method].quantize(torch.randn(8, 24).half(), [one.number], moment)
        del moment
        assert gone() is None
    finally:
        gc.enable()
