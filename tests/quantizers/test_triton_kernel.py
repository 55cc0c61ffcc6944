"""The kernel for graphics processors, interpreted on the CPU, gives what the CPU's kernel gives.

pip install --no-deps triton && pytest tests/quantizers/test_triton_kernel.py
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import patch

import pytest
import torch

from qua2sedimo.quantizers import LEVEL_METHODS, dequantize_weight, operator
from qua2sedimo.quantizers.operator import decode, decode_into
from qua2sedimo.quantizers.packing import pack

NAME = "qua2sedimo.quantizers.triton_kernel"


@pytest.fixture(scope="module")
def kernel() -> Iterator[ModuleType]:
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_INTERPRET", "1")  # looked at when the kernel is defined
        sys.modules.pop(NAME, None)
        yield importlib.import_module(NAME)
        sys.modules.pop(NAME, None)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 1025), (5, 7), (1, 1)])
def test_interpreted_as_on_the_cpu(kernel: ModuleType, bits: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    chance = torch.Generator().manual_seed(bits)
    codes = pack(torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=chance), bits)
    for books in {1, shape[0]}:
        levels = torch.randn(books, 2**bits, generator=chance).to(dtype)
        expected, found = torch.empty(shape, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
        decode_into(codes, levels, bits, expected)
        kernel.decode_rows_into(codes, levels, bits, found)
        assert torch.equal(expected, found)


def test_a_part_of_a_wider_weight_is_written_and_nothing_else(kernel: ModuleType) -> None:
    codes = pack(torch.arange(8, dtype=torch.uint8).view(2, 4), 3)
    levels = torch.arange(8.0)[None]
    whole = torch.full((2, 10), -1.0)
    version = whole._version
    kernel.decode_rows_into(codes, levels, 3, whole[:, 3:7])
    assert torch.equal(whole[:, 3:7], torch.arange(8.0).view(2, 4))
    assert (whole[:, :3] == -1).all() and (whole[:, 7:] == -1).all()
    assert whole._version > version


@pytest.mark.parametrize("method", LEVEL_METHODS)
def test_a_weight_on_a_graphics_processor_is_decoded_by_it(kernel: ModuleType, method: str) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    value = LEVEL_METHODS[method].quantize(weight, [3])[0]
    calls: list[int] = []

    def counted(*arguments: torch.Tensor) -> None:
        calls.append(1)
        kernel.decode_rows_into(*arguments)

    with patch.object(operator, "device_kernel", lambda device: counted):
        found = operator.decode_on_device(
            value.codes, LEVEL_METHODS[method].levels(value.parameters, 3).bfloat16(), 3, value.shape
        )
    assert calls and torch.equal(found, dequantize_weight(value))


def test_without_triton_tensor_operations_decode() -> None:
    codes = pack(torch.arange(8, dtype=torch.uint8).view(2, 4), 3)
    levels = torch.arange(8.0)[None]
    with patch.object(operator, "device_kernel", lambda device: None):
        found = operator.decode_on_device(codes, levels, 3, (2, 4))
    assert torch.equal(found, decode(codes, levels, 3, (2, 4)))
    assert operator.device_kernel("cpu") is None and operator.device_kernel("mps") is None
