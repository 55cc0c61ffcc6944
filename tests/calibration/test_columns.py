"""What a layer sees as rows: times the weight, they are what the layer computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.statistics import positions, unit_columns
from qua2sedimo.statistics.columns import unfolded

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PLENTY = 10**6


def unit_of(module: nn.Module, span: tuple[int, int] | None = None) -> WeightLayer:
    """The module as a unit of quantization, or the part of it that reads some of the channels."""
    whole = WeightLayer("m", "m", None, tuple(module.weight.shape), type(module).__name__, "", "", None, "")
    return whole if span is None else whole.part(*span)


def columns(
    module: nn.Module,
    x: torch.Tensor,
    span: tuple[int, int] | None = None,
    most: int = PLENTY,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return unit_columns(module, unit_of(module, span), x, most, torch.Generator().manual_seed(0), keep)


def channels_last(output: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """A layer's output as rows [positions, channels], without its bias."""
    flat = output if isinstance(module, nn.Linear) else output.movedim(1, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    return flat if module.bias is None else flat - module.bias


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A convolution of any kind, and an input that is large enough for it."""
    axes = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    dilation = draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    padding = draw(
        st.one_of(st.just("same"), st.just("valid"), st.lists(st.integers(0, 2), min_size=axes, max_size=axes))
    )
    strides = [1] * axes if padding == "same" else draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    groups = draw(st.sampled_from([1, 1, 2]))
    torch.manual_seed(draw(st.integers(0, 99)))
    module = CONVOLUTIONS[axes - 1](
        4, 6, kernel, strides, padding if isinstance(padding, str) else tuple(padding), dilation, groups,
        bias=draw(st.booleans()), padding_mode=mode,
    )  # fmt: skip
    sizes = [d * (k - 1) + 1 + draw(st.integers(2, 4)) for k, d in zip(kernel, dilation)]
    return module, torch.randn(draw(st.integers(1, 3)), 4, *sizes)


@settings(max_examples=150, deadline=None)
@given(convolutions())
@torch.no_grad()
def test_rows_of_a_convolution_times_its_weight_are_its_output(case: tuple[nn.Module, torch.Tensor]) -> None:
    module, x = case
    rows, numbers = columns(module, x)
    found = rows.reshape(-1, module.groups, rows.shape[1])
    weights = module.weight.reshape(module.groups, -1, rows.shape[1])
    expected = channels_last(module(x), module)
    computed = torch.cat([found[:, g] @ weights[g].T for g in range(module.groups)], dim=1)
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)
    assert positions(module, x) == len(expected)
    assert numbers.tolist() == [i for i in range(len(x)) for _ in range(len(rows) // len(x))]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=3), st.booleans())
@torch.no_grad()
def test_rows_of_a_linear_layer_times_its_weight_are_its_output(before: list[int], bias: bool) -> None:
    module, x = nn.Linear(5, 7, bias=bias), torch.randn(*before, 5)
    rows, numbers = columns(module, x)
    torch.testing.assert_close(rows @ module.weight.T, channels_last(module(x), module), rtol=1e-4, atol=1e-5)
    assert positions(module, x) == len(rows) == x.numel() // 5
    if len(before) > 1:
        assert numbers.tolist() == [i for i in range(len(x)) for _ in range(len(rows) // len(x))]


@torch.no_grad()
def test_the_parts_of_a_layer_add_up_to_the_whole() -> None:
    chance = torch.Generator().manual_seed(1)
    cases = [
        (nn.Linear(6, 4, bias=False), torch.randn(2, 3, 6, generator=chance)),
        (nn.Conv2d(6, 4, 3, 2, 1, bias=False), torch.randn(2, 6, 7, 5, generator=chance)),
    ]
    for module, x in cases:
        total = torch.zeros(())
        for span in ((0, 2), (2, 6)):
            rows, _ = columns(module, x, span)
            part = module.weight[:, span[0] : span[1]].reshape(4, -1)
            assert rows.shape[1] == part.shape[1]
            total = total + rows @ part.T
        torch.testing.assert_close(total, channels_last(module(x), module), rtol=1e-4, atol=1e-5)


def test_a_convolution_of_one_sample_without_a_batch_is_that_of_a_batch_of_one() -> None:
    for module, x in ((nn.Conv1d(3, 4, 3), torch.randn(3, 9)), (nn.Conv2d(3, 4, 3, 2, 1), torch.randn(3, 8, 6))):
        rows, numbers = columns(module, x)
        assert torch.equal(rows, columns(module, x[None])[0])
        assert set(numbers.tolist()) == {0}
        assert positions(module, x) == positions(module, x[None]) == len(rows)


def test_rows_are_fp32_whatever_the_input_is_and_take_no_gradients() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.bfloat16, requires_grad=True)
    rows, _ = columns(nn.Linear(8, 2).bfloat16(), x)
    assert rows.dtype == torch.float32 and not rows.requires_grad
    assert torch.equal(rows, x.detach().float().reshape(6, 8))


# What is left out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5, 11, 12, 100])
def test_at_most_as_many_positions_as_asked_for_are_drawn_each_with_its_sample(most: int) -> None:
    """Row p of sample s holds the number 100·s + p, so that it tells where it comes from."""
    places = (100 * torch.arange(3)[:, None] + torch.arange(4)).float()
    for module, x in (
        (nn.Linear(2, 1), places[:, :, None].expand(3, 4, 2)),
        (nn.Conv1d(2, 1, 1), places[:, None].expand(3, 2, 4)),
    ):
        rows, numbers = columns(module, x, most=most)
        assert len(rows) == len(numbers) == min(most, 12)
        drawn = rows[:, 0].tolist()
        assert len(set(drawn)) == len(drawn) and set(drawn) <= set(places.flatten().tolist())
        assert [int(v) // 100 for v in drawn] == numbers.tolist()


def test_the_same_chance_draws_the_same_positions() -> None:
    for module, x in ((nn.Linear(4, 1), torch.randn(3, 50, 4)), (nn.Conv2d(4, 1, 3), torch.randn(5, 4, 9, 9))):
        (one, of_one), (two, of_two) = (columns(module, x, most=20) for _ in range(2))
        assert torch.equal(one, two) and torch.equal(of_one, of_two)


def test_positions_that_a_mask_leaves_out_are_never_drawn() -> None:
    x = torch.arange(12.0).reshape(3, 4, 1)
    keep = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    for most in (3, PLENTY):
        rows, numbers = columns(nn.Linear(1, 1), x, most=most, keep=keep)
        found = set(rows[:, 0].tolist())
        assert found <= {0.0, 2.0, 8.0, 9.0, 10.0, 11.0} and len(found) == len(rows) == min(most, 6)
        assert [int(v) // 4 for v in rows[:, 0]] == numbers.tolist()
    rows, numbers = columns(nn.Linear(1, 1), x, keep=torch.zeros(3, 4, dtype=torch.bool))
    assert len(rows) == len(numbers) == 0


def test_unfolding_agrees_with_that_of_torch() -> None:
    module, x = nn.Conv2d(3, 1, (3, 2), (2, 1), (1, 2), (1, 2)), torch.randn(2, 3, 9, 8)
    expected = nn.functional.unfold(x, (3, 2), (1, 2), (1, 2), (2, 1)).transpose(1, 2).reshape(-1, 18)
    assert torch.equal(unfolded(module, x), expected)


@pytest.mark.parametrize("module", [nn.Linear(4, 2), nn.Conv2d(4, 6, 3, groups=2)])
def test_of_nothing_there_are_no_rows(module: nn.Module) -> None:
    empty = torch.zeros(0, 5, 4) if isinstance(module, nn.Linear) else torch.zeros(0, 4, 5, 5)
    some = torch.zeros(1, *empty.shape[1:])
    rows, samples = columns(module, empty)
    assert rows.shape == (0, columns(module, some)[0].shape[1]) and len(samples) == 0
