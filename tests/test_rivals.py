"""Methods of other papers have the properties that their papers state."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import MAKERS, call_of
from torch import nn

from qua2sedimo.denoisers import Graph, trace
from qua2sedimo.statistics import RecordedCall, sample_name


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


# Q-Diffusion ---------------------------------------------------------------------------------------------------------


def reconstructed(rivals: Any, kind: str, bits: int = 3) -> tuple[nn.Module, nn.Module, Graph, list[RecordedCall]]:
    model = MAKERS[kind]()
    call = call_of(model)
    graph = trace(model, (), call, parts=True, ties=True)
    sample, chance = sample_name(model), torch.Generator().manual_seed(2)
    noises = [torch.randn(call[sample].shape, generator=chance) for _ in range(4)]
    calls = [RecordedCall((), {**call, sample: noise}, ()) for noise in noises]
    full = copy.deepcopy(model)
    rivals("rivals.reconstruction").reconstruct(model, full, calls, graph.layers, bits, steps=60)
    return model, full, graph, calls


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_a_reconstructed_denoiser_is_nearer_than_one_rounded_to_nearest_levels(rivals: Any, kind: str) -> None:
    """Its table 4: reconstruction behind quantized predecessors keeps what nearest rounding at 3 bits loses."""
    model, full, graph, calls = reconstructed(rivals, kind)
    near, grid = copy.deepcopy(full), rivals("rivals.uniform").Grid
    for unit in graph.layers.values():
        for name in (unit.module, *unit.copies):
            whole = near.get_submodule(name).weight.data
            part = whole if unit.span is None else whole[:, unit.span[0] : unit.span[1]]
            rows = part.reshape(len(part), -1)
            part.copy_(grid.best(rows, 3).nearest(rows).view(part.shape))

    def error(other: nn.Module) -> float:
        with torch.no_grad():
            return sum(float((call.run(other)[0] - call.run(full)[0]).square().sum()) for call in calls)

    assert error(model) < 0.8 * error(near)


def test_every_part_of_a_split_shortcut_has_a_grid_of_its_own(rivals: Any) -> None:
    """Its §4.2. Every weight is one of 2³ levels of its row and part."""
    model, full, graph, _ = reconstructed(rivals, "unet")
    parts = [unit for unit in graph.layers.values() if unit.span is not None]
    assert parts
    for unit in [*parts, *list(graph.layers.values())[:3]]:
        span = unit.span or (0, None)
        made, before = (m.get_submodule(unit.module).weight[:, span[0] : span[1]].flatten(1) for m in (model, full))
        assert all(len(row.unique()) <= 8 for row in made)
        step = rivals("rivals.uniform").Grid.best(before, 3).scale
        assert ((made / step).round() - made / step).abs().max() < 1e-3


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
