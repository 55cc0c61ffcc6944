"""Recorded calls come back as they were, whatever a denoiser's arguments are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qua2sedimo import Qua2SeDiMoError
from qua2sedimo.statistics import RecordedCall
from qua2sedimo.statistics.calls import RecordedCalls, _write

REAL = torch.arange(6.0).reshape(2, 3)
TENSORS = {
    "complex": torch.complex(REAL, -REAL), "conjugate": torch.complex(REAL, REAL).conj(),
    "double complex": torch.complex(REAL.double(), REAL.double()), "half": REAL.half(), "bf16": REAL.bfloat16(),
    "fp8": REAL.to(torch.float8_e4m3fn), "bool": REAL > 2, "int": torch.tensor(3), "uint16": REAL.to(torch.uint16),
    "transposed": REAL.T.clone(), "empty": REAL[:0].clone(),
}  # fmt: skip


def test_arguments_of_every_kind_come_back(tmp_path: Path) -> None:
    nested = {"list": [TENSORS["complex"].clone(), None, 0.5], "tuple": (True, "text", TENSORS["half"].clone())}
    call = RecordedCall((REAL.clone(), 7), {**TENSORS, "nested": nested}, (REAL.sign(),))
    _write(tmp_path / "000000-0001.safetensors", call)
    found = RecordedCalls(tmp_path)[0]
    for name, tensor in TENSORS.items():
        again = found.kwargs[name]
        assert again.dtype == tensor.dtype and again.shape == tensor.shape
        assert torch.equal(wide(again), wide(tensor)), name
    assert torch.equal(found.kwargs["nested"]["list"][0], TENSORS["complex"])
    assert found.kwargs["nested"]["list"][1:] == [None, 0.5] and found.kwargs["nested"]["tuple"][:2] == (True, "text")
    assert found.args[1] == 7 and torch.equal(found.cotangents[0], REAL.sign())


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In a type that holds all values and can be compared."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def test_an_argument_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="argument of the denoiser is a object"):
        _write(tmp_path / "a.safetensors", RecordedCall((object(),), {}, ()))
