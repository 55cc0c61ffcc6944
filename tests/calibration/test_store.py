"""Moments on disk: small ones exactly, large ones in half the bytes, their diagonal exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qua2sedimo.quantizers import METHODS, Moment, dequantize_weight
from qua2sedimo.statistics import Source, store

FEW = 96  # inputs of a "large" moment here


@pytest.fixture
def compact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_LARGE", FEW - 1)


def moment_of(inputs: int, seed: int = 0) -> Moment:
    """Of inputs whose sizes differ by six powers of ten, one of them never seen."""
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * inputs, inputs, generator=chance) @ torch.randn(inputs, inputs, generator=chance)
    rows = rows * torch.logspace(3, -3, inputs)
    rows[:, inputs // 2] = 0
    return Moment((rows.T @ rows / len(rows),))


def kept(moment: Moment, path: Path) -> Moment:
    store.write_moment(path, moment, 7)
    return store.read_moment(path, Source(("layer",), moment.inputs, ()))


def test_small_moments_are_kept_exactly_and_large_ones_in_half_the_bytes(tmp_path: Path, compact: None) -> None:
    small, large = moment_of(FEW - 1), moment_of(FEW)
    assert torch.equal(kept(small, tmp_path / "small.safetensors").blocks[0], small.blocks[0])
    found = kept(large, tmp_path / "large.safetensors").blocks[0]
    size = {name: (tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "large")}
    assert size["large"] < 0.6 * size["small"]
    assert torch.equal(found.diagonal(), large.blocks[0].diagonal()) and torch.equal(found, found.T)
    scale = large.blocks[0].diagonal().sqrt()
    assert ((found - large.blocks[0]).abs() <= scale[:, None] * scale * 2.0**-11 + 1e-30).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_under_a_moment_in_half_the_bytes_is_as_good(tmp_path: Path, compact: None, bits: int) -> None:
    ratios = []
    for seed in range(6):
        moment = moment_of(FEW, seed)
        weight = torch.randn(64, FEW, generator=torch.Generator().manual_seed(seed)).half()
        errors = []
        for used in (moment, kept(moment, tmp_path / f"{seed}.safetensors")):
            (value,) = METHODS["row"].quantize(weight, [bits], used)
            errors.append(float(moment.errors(weight.float() - dequantize_weight(value).float()).sum()))
        ratios.append(errors[1] / errors[0])
    assert max(ratios) < 1.02 and sum(ratios) / len(ratios) < 1.005


def test_a_large_moment_that_is_not_finite_or_all_zero_stays_so(tmp_path: Path, compact: None) -> None:
    overflowed, unseen = moment_of(FEW), Moment((torch.zeros(FEW, FEW),))
    overflowed.blocks[0][3, :] = overflowed.blocks[0][:, 3] = torch.inf
    for name, moment in (("overflowed", overflowed), ("unseen", unseen)):
        assert kept(moment, tmp_path / f"{name}.safetensors").problem == moment.problem is not None
