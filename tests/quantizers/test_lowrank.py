"""Low rank: the best product of two thin factors under the inputs' moment, in 8 bits."""

from __future__ import annotations

import pytest
import torch

from qua2sedimo.quantizers import LowRank, Moment, dequantize_weight, packed_bytes
from qua2sedimo.quantizers.decoding import dequantize_traceable

LOW = LowRank()
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def second_moment(n: int, decay: float = 2.0, seed: int = 0) -> torch.Tensor:
    """Of inputs whose directions have variances over ``decay`` powers of ten."""
    turned = torch.linalg.qr(normal(n, n, seed=seed + 1))[0]
    x = normal(4 * n, n, seed=seed) * torch.logspace(0, -decay / 2, n) @ turned
    return x.T @ x / len(x)


def weighed(difference: torch.Tensor, moment: Moment) -> float:
    """‖D·S‖², the mean squared error of the output."""
    whole = torch.block_diag(*(block.double() for block in moment.blocks))
    return float((difference @ whole * difference).sum())


def least(weight: torch.Tensor, moment: Moment, rank: int) -> float:
    """The least error of any matrix of this rank: what the other singular values of W·S hold (Eckart and Young)."""
    whole = torch.block_diag(*(block.double() for block in moment.blocks))
    values, vectors = torch.linalg.eigh(whole)
    root = vectors * values.clamp(min=0).sqrt()
    return float(torch.linalg.svdvals(weight.double().view(len(weight), -1) @ root)[rank:].square().sum())


def difference(weight: torch.Tensor, rank: int, moment: Moment | None) -> torch.Tensor:
    (value,) = LOW.quantize(weight, [rank], moment)
    return (dequantize_weight(value).double() - weight.double()).view(len(weight), -1)


@dtypes
@pytest.mark.parametrize("size", [1e-3, 0.02, 10.0])
@pytest.mark.parametrize("shape", [(64, 96), (150, 40)])
def test_the_error_is_the_least_of_its_rank_but_for_a_percent(dtype, size: float, shape: tuple[int, int]) -> None:
    weight = (size * normal(*shape)).to(dtype)
    moments = [
        Moment((second_moment(shape[1]),)),
        Moment((second_moment(10), 100 * second_moment(shape[1] - 10, seed=3))),
        Moment.identity(shape[1]),
    ]
    for moment in moments:
        for rank in (1, 4, 6, 20):
            found, best = weighed(difference(weight, rank, moment), moment), least(weight, moment, rank)
            # Rounding the weight to its own type adds an error of its own, and takes the rank away.
            assert best * 0.99 <= found <= best * 1.01


def test_without_a_moment_it_is_the_best_approximation_of_the_weight_itself() -> None:
    weight, flat = normal(30, 50), Moment.identity(50)
    assert weighed(difference(weight, 8, None), flat) <= 1.01 * least(weight, flat, 8)


def test_directions_that_no_input_has_cost_nothing() -> None:
    """Inputs in 12 directions: rank 12 computes their outputs, which it cannot for all inputs."""
    basis = torch.linalg.qr(normal(64, 64, seed=4))[0][:, :12]
    moment = Moment((basis @ basis.T,))
    weight = normal(48, 64)
    error, total = weighed(difference(weight, 12, moment), moment), weighed(weight.double(), moment)
    assert error < 1e-3 * total
    assert weighed(difference(weight, 12, None), moment) > 0.1 * total


@dtypes
def test_a_rank_beyond_that_of_the_weight_leaves_rounding_alone(dtype: torch.dtype) -> None:
    weight = (normal(40, 3) @ normal(3, 30) / 3).to(dtype)
    for rank in (3, 7, 35, 60):  # also beyond the number of inputs, and of channels
        assert difference(weight, rank, None).square().sum() < 2e-4 * weight.double().square().sum()
        assert (
            difference(weight, rank, Moment((second_moment(30),))).square().sum()
            < 0.01 * weight.double().square().sum()
        )


@pytest.mark.parametrize("shape", [(6, 20), (4, 3, 5), (5, 3, 3, 3), (2, 2, 1, 3, 3), (7, 1), (9,), (1, 33)], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 5, 12, 300])
def test_sizes_are_exact_for_every_shape(shape: tuple[int, ...], rank: int) -> None:
    weight = normal(*shape)
    (value,) = LOW.quantize(weight, [rank])
    channels, n = shape[0], weight.numel() // shape[0]
    first = min(4, rank)
    assert value.nbytes == packed_bytes("lowrank", shape, rank)
    assert value.nbytes == rank * n + 2 * rank + channels * (2 * first + rank - first) + 2 * channels
    back = dequantize_weight(value)
    assert back.shape == shape and value.option == f"lowrank-{rank}"
    assert rank > 1 or torch.linalg.matrix_rank(back.view(channels, n), rtol=1e-3) == 1


@dtypes
def test_zero_weights_are_exact(dtype: torch.dtype) -> None:
    weight = torch.zeros(8, 12, dtype=dtype)
    for rank in (1, 6, 20):
        assert torch.equal(dequantize_weight(LOW.quantize(weight, [rank])[0]), weight)
    weight[2] = 0.5  # one row, one column, one weight beside zeros
    weight[:, 3] = 0.25
    assert difference(weight, 2, None).abs().max() < 5e-3


@dtypes
def test_decoding_is_the_same_every_time_on_any_number_of_threads_and_while_traced(dtype: torch.dtype) -> None:
    weight = normal(60, 50).to(dtype)
    (value,) = LOW.quantize(weight, [12])
    expected = dequantize_weight(value)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(dequantize_weight(value), expected)
    finally:
        torch.set_num_threads(before)
    for target in (torch.float32, torch.float16):
        assert torch.equal(dequantize_traceable(value, target), expected.to(target))


@dtypes
def test_factors_multiply_to_the_weight_and_have_numbers_in_half_precision(dtype: torch.dtype) -> None:
    weight = (0.02 * normal(80, 60)).to(dtype)
    (value,) = LOW.quantize(weight, [16], Moment((second_moment(60),)))
    exact = dequantize_weight(value).double()
    a, b = LOW.factors(value, torch.float64)
    assert a.shape == (80, 16) and b.shape == (16, 60)
    torch.testing.assert_close(a @ b, exact, rtol=0, atol=float(exact.abs().max()) * torch.finfo(dtype).eps)
    torch.testing.assert_close(a.square().mean(dim=0).sqrt(), torch.ones(16, dtype=torch.float64), rtol=0.1, atol=0)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        a, b = LOW.factors(value, kind)
        assert a.dtype == b.dtype == kind
        eps = 4 * torch.finfo(kind).eps + torch.finfo(dtype).eps
        assert ((a.double() @ b.double()) - exact).norm() < eps * exact.norm()


@dtypes
@pytest.mark.parametrize("size", [1e-30, 1e-7, 3e4, 1e37])
def test_weights_at_the_ends_of_their_type_stay_finite(dtype: torch.dtype, size: float) -> None:
    largest = torch.finfo(dtype).max if dtype == torch.bfloat16 else 65504.0
    weight = (normal(30, 20).double() * size).clamp(-largest, largest).to(dtype)
    for rank in (2, 9):
        (value,) = LOW.quantize(weight, [rank], Moment((second_moment(20),)))
        assert all(torch.isfinite(p).all() for p in value.parameters.values())
        assert torch.isfinite(dequantize_weight(value)).all()
        if size > 1e-6 or dtype == torch.bfloat16:
            assert difference(weight, rank, None).norm() < weight.double().norm()


@pytest.mark.parametrize("power", [-100, 100])
def test_the_size_of_the_inputs_does_not_matter(power: int) -> None:
    weight, block = normal(20, 30), second_moment(30)
    (plain,), (large,) = (LOW.quantize(weight, [8], Moment((b,))) for b in (block, block * 2.0**power))
    assert torch.equal(plain.codes, large.codes)


def test_a_block_that_saw_only_zeros_takes_no_rank_from_the_others() -> None:
    seen = 1e-4 * second_moment(30)
    moment = Moment((seen, torch.zeros(10, 10)))
    weight = normal(24, 40)
    found, best = weighed(difference(weight, 8, moment), moment), least(weight, moment, 8)
    assert found <= 1.01 * best
