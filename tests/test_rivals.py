"""Methods of other papers have the properties that their papers state."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def rivals() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, seed: int = 1) -> torch.Tensor:
    """A moment of inputs that depend on each other."""
    x = drawn(4 * n, n, seed=seed) @ (torch.eye(n) + 2 * drawn(n, n, seed=seed + 1) / n**0.5)
    return x.T @ x / len(x)


def output_error(difference: torch.Tensor, moment: torch.Tensor) -> float:
    return float(((difference @ moment) * difference).sum())


# A uniform grid ------------------------------------------------------------------------------------------------------


def test_nearest_levels_are_at_most_half_a_step_away(rivals: Any) -> None:
    uniform, weight = rivals("rivals.uniform"), drawn(8, 32)
    step = (weight.amax(1).clamp(min=0) - weight.amin(1).clamp(max=0)) / 7
    assert ((uniform.nearest(weight, 3) - weight).abs().amax(1) <= 1.01 * step).all()
    assert ((uniform.nearest(weight, 3) - weight).abs().mean(1) <= 0.5 * step).all()


def test_bytes_of_groups_by_hand(rivals: Any) -> None:
    """4 × 128 codes of 4 bits: 256; 8 groups of 64: 16 bytes of scales, 4 of zero points."""
    assert rivals("rivals.uniform").packed_bytes(4, 128, 4, 64) == 256 + 16 + 4
    assert rivals("rivals.svdquant").packed_bytes(4, 128, 4, 2, 64) == 276 + 2 * 2 * 132


# GPTQ ----------------------------------------------------------------------------------------------------------------


def test_gptq_of_independent_inputs_is_nearest_rounding(rivals: Any) -> None:
    """Nothing can be made up for by inputs that do not depend on each other."""
    weight = drawn(6, 24)
    moment = torch.diag(torch.linspace(0.5, 2, 24))
    torch.testing.assert_close(
        rivals("rivals.gptq").gptq(weight, moment, 3), rivals("rivals.uniform").nearest(weight, 3)
    )


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("group", [None, 16])
def test_gptq_has_less_output_error_than_nearest_rounding(rivals: Any, group: int | None, ordered: bool) -> None:
    weight, moment = drawn(16, 64), correlated(64)
    near = output_error(rivals("rivals.uniform").nearest(weight, 3, group) - weight, moment)
    made = output_error(rivals("rivals.gptq").gptq(weight, moment, 3, group, ordered) - weight, moment)
    assert made < 0.7 * near


def test_columns_to_come_make_up_for_an_error_as_well_as_they_can(rivals: Any) -> None:
    """Its update is the least-squares optimum (its equation 2): what is free, F, moves by (w_j − q_j)·H_FF⁻¹·H_Fj."""
    moment, j = correlated(10).double(), 3
    upper = rivals("rivals.gptq").factor(moment, damping=0.0)
    change = -upper[j, j + 1 :] / upper[j, j]  # of the columns that follow, for an error of 1 in column j
    free = moment[j + 1 :, j + 1 :]
    best = torch.linalg.solve(free, moment[j + 1 :, j])
    torch.testing.assert_close(change, best)


def test_its_factor_gives_the_inverse(rivals: Any) -> None:
    moment = correlated(12).double()
    upper = rivals("rivals.gptq").factor(moment, damping=0.0)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(moment))
    torch.testing.assert_close(upper, upper.triu())


# AdaRound ------------------------------------------------------------------------------------------------------------


def test_learning_starts_at_the_weights_themselves(rivals: Any) -> None:
    """Its §3.3: h(V) of the start is what flooring leaves."""
    ada, rest = rivals("rivals.adaround"), torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(ada.soft(ada.start(rest)), rest, atol=1e-3, rtol=0)


def test_adaround_goes_up_or_down_by_less_than_a_step_and_beats_nearest_rounding(rivals: Any) -> None:
    weight, moment, bits = 0.1 * drawn(16, 32), correlated(32), 3
    grid = rivals("rivals.uniform").Grid.best(weight, bits)
    made = rivals("rivals.adaround").adaround(weight, moment, bits, steps=400)
    ends = (grid.scale * -grid.zero, grid.scale * (2**bits - 1 - grid.zero))
    inside = (weight > ends[0]) & (weight < ends[1])
    assert ((made - weight).abs() <= 1.001 * grid.scale)[inside].all()
    near = output_error(grid.nearest(weight) - weight, moment)
    assert output_error(made - weight, moment) < 0.8 * near


# SVDQuant ------------------------------------------------------------------------------------------------------------


def test_the_residual_has_the_norm_of_the_other_singular_values(rivals: Any) -> None:
    """Its §4.2: ‖R‖² = Σ σ_i² over i > rank."""
    weight = drawn(24, 40)
    _, _, rest = rivals("rivals.svdquant").split(weight, 8)
    expected = torch.linalg.svdvals(weight)[8:].square().sum()
    torch.testing.assert_close(rest.square().sum(), expected, rtol=1e-3, atol=0)


def test_outliers_go_into_the_branch(rivals: Any) -> None:
    """A weight whose outliers lie in few directions is quantized far better beside a branch."""
    weight = drawn(64, 64) + 20 * drawn(64, 2, seed=3) @ drawn(2, 64, seed=4)
    plain = (rivals("rivals.uniform").nearest(weight, 4, 64) - weight).norm()
    beside = (rivals("rivals.svdquant").svdquant(weight, 4, rank=4) - weight).norm()
    assert beside < plain / 5
