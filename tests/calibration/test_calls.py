"""Recorded calls come back as they were, whatever a denoiser's arguments are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibration.pipelines import observation
from torch import nn

from qua2sedimo import Qua2SeDiMoError
from qua2sedimo.statistics import RecordedCall
from qua2sedimo.statistics.calls import RecordedCalls, write_call
from qua2sedimo.statistics.recording import record_calls

REAL = torch.arange(6.0).reshape(2, 3)
TENSORS = {
    "complex": torch.complex(REAL, -REAL), "conjugate": torch.complex(REAL, REAL).conj(),
    "double complex": torch.complex(REAL.double(), REAL.double()), "half": REAL.half(), "bf16": REAL.bfloat16(),
    "fp8": REAL.to(torch.float8_e4m3fn), "bool": REAL > 2, "int": torch.tensor(3), "uint16": REAL.to(torch.uint16),
    "expanded": torch.tensor(500).expand(1), "transposed": REAL.T.clone(), "empty": REAL[:0].clone(),
}  # fmt: skip


def test_arguments_of_every_kind_come_back(tmp_path: Path) -> None:
    nested = {"list": [TENSORS["complex"].clone(), None, 0.5], "tuple": (True, "text", TENSORS["half"].clone())}
    call = RecordedCall((REAL.clone(), 7), {**TENSORS, "nested": nested}, (REAL.sign(),))
    write_call(tmp_path / "000000-0001.safetensors", call)
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
        write_call(tmp_path / "a.safetensors", RecordedCall((object(),), {}, ()))


def test_arguments_that_share_memory_come_back(tmp_path: Path) -> None:
    """Pipelines give the same mask for text and sound, or parts of one tensor."""
    call = RecordedCall((REAL,), {"same": REAL, "part": REAL[1:], "moved": REAL.T}, (REAL,))
    write_call(tmp_path / "000000-0001.safetensors", call)
    found = RecordedCalls(tmp_path)[0]
    assert torch.equal(found.args[0], REAL) and torch.equal(found.cotangents[0], REAL)
    assert all(torch.equal(found.kwargs[name], tensor) for name, tensor in call.kwargs.items())


def test_calls_that_no_file_can_hold_are_left_out_where_there_are_others(tmp_path: Path) -> None:
    what = observation("pixart")
    plain, calls = what.denoiser.forward, []

    def forward(*args: Any, mask: Any = None, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    def every_other(module: nn.Module, args: Any, kwargs: Any) -> Any:
        calls.append(len(calls) % 2)
        return args, {**kwargs, "mask": object() if calls[-1] else None}

    what.denoiser.forward = forward
    what.denoiser.register_forward_pre_hook(every_other, with_kwargs=True)
    found = record_calls(what.generator, what.denoiser, what.images, tmp_path)
    assert 0 < len(found) == calls.count(0) == calls.count(1)
    assert all(call.kwargs["mask"] is None for call in found)


class OneByOne(nn.Module):
    """A denoiser that is called for each half of its batch by itself, as pipelines do that guide in separate calls."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)

    def forward(self, sample: torch.Tensor, return_dict: bool = True, **arguments: Any) -> Any:
        found = []
        for part in range(2):
            own = {k: v.chunk(2)[part] if torch.is_tensor(v) else v for k, v in arguments.items()}
            found.append(self.inner(sample.chunk(2)[part], **own, return_dict=False)[0])
        return (torch.cat(found),)


def test_a_step_in_two_calls_weighs_as_much_as_one_in_a_single_call(tmp_path: Path) -> None:
    """The mean over calls of the squared change that a weight makes must be that over steps."""
    together = observation("pixart")
    whole = record_calls(together.generator, together.denoiser, together.images, tmp_path / "whole")
    apart = observation("pixart")
    pipeline = apart.generator.pipeline
    pipeline.transformer = OneByOne(pipeline.transformer)
    parts = record_calls(apart.generator, apart.denoiser, apart.images, tmp_path / "parts")
    assert len(parts) == 2 * len(whole)
    for number, call in enumerate(whole):
        joined = torch.cat([parts[2 * number + part].cotangents[0] for part in range(2)])
        torch.testing.assert_close(joined, 2**0.5 * call.cotangents[0])
