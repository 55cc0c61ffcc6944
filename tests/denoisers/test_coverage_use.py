"""What people do with packed models, for every transformer and U-Net class of diffusers."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
from tests.answers import YES
from tests.denoisers.coverage.given import given_answers
from tests.denoisers.coverage.registry import CONFIGURATIONS, exported
from tests.denoisers.coverage.use import answers

_ALWAYS = ("FluxTransformer2DModel", "WanTransformer3DModel", "UNet1DModel")


@pytest.mark.parametrize(
    "name", [n if n in _ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGURATIONS]
)
def test_a_packed_model_of_a_class_is_used_as_a_plain_one(name: str, tmp_path: Path) -> None:
    if name not in exported():
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    found = {**answers(name, tmp_path / "used"), **given_answers(name, tmp_path / "given")}
    if "whose inputs cannot be quantized" in found["8-bit activations"]:  # an attention of its own, named
        del found["8-bit activations"]
    assert not {question: answer for question, answer in found.items() if answer != YES and answer[:4] != "n/a:"}
