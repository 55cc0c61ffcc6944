"""The comparison with other tools: bytes are counted right, whatever a tool stores them in."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("peers_tools")


@pytest.fixture(scope="module")
def docs(tools: Any) -> Any:
    return importlib.import_module("peers_docs")


class Packed(torch.Tensor):
    """A quantized weight as tools have them: a tensor that holds others."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, (4, 16), dtype=torch.float16)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Nothing is computed with it."""
        return args[0] if func is torch.ops.aten.detach.default else NotImplemented

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None


def test_bytes_of_plain_tensors_are_counted_by_hand(tools: Any) -> None:
    layer = nn.Linear(16, 4, dtype=torch.float16)
    assert tools.stored_bytes(layer.state_dict()) == 2 * (4 * 16 + 4)


def test_bytes_inside_a_tensor_of_another_class_count_and_its_shape_does_not(tools: Any) -> None:
    packed = Packed(torch.zeros(4, 8, dtype=torch.uint8), torch.ones(4, 1, dtype=torch.float32))
    assert tools.stored_bytes({"weight": packed, "bias": torch.zeros(4, dtype=torch.float16)}) == 32 + 16 + 8


def test_what_occurs_twice_counts_once_and_what_is_no_tensor_not_at_all(tools: Any) -> None:
    shared = torch.zeros(10, dtype=torch.float16)
    assert tools.stored_bytes({"a": shared, "b": shared, "version": 3, "none": None}) == 20


def test_full_bytes_are_16_bits_whatever_the_dtype(tools: Any) -> None:
    assert tools.full_bytes(nn.Linear(16, 4, dtype=torch.float32)) == 2 * (4 * 16 + 4)


def test_layers_in_few_bits_leave_the_rest_in_16_and_copies_count_once(tools: Any) -> None:
    """64 weights in 3 bits are 24 bytes; the bias has 8, the module that holds the same once more nothing."""
    denoiser = nn.ModuleDict({"a": nn.Linear(16, 4), "b": nn.Linear(16, 4), "norm": nn.LayerNorm(5)})
    graph = SimpleNamespace(layers={"a": SimpleNamespace(module="a", copies=("b",))})
    study = SimpleNamespace(workspace=SimpleNamespace(graph=graph, candidates=SimpleNamespace(layers=("a",))))
    assert tools.packed_bytes(tools.Subject(denoiser, study, None), 24) == 24 + 8 + 20


def test_gguf_counts_whole_blocks_and_leaves_what_has_none(tools: Any) -> None:
    """Q8_0 stores 32 weights in 34 bytes; rows of 40 have no whole blocks, and biases no type."""
    pytest.importorskip("gguf")
    denoiser = nn.Sequential(nn.Linear(64, 3), nn.Linear(40, 2), nn.Conv2d(2, 2, 3)).half()
    saved = tools._by_gguf(tools.Subject(denoiser, None, None), "Q8_0")
    assert set(saved.weights) == {"0.weight"}
    assert saved.nbytes == 3 * 2 * 34 + 2 * 3 + 2 * (80 + 2) + 2 * (36 + 2)
    torch.testing.assert_close(saved.weights["0.weight"], denoiser[0].weight.data.float(), atol=1e-3, rtol=0)


def row(nbytes: int, psnr: float) -> dict[str, Any]:
    return {"nbytes": nbytes, "psnr": psnr, "bits": nbytes / 10}


def test_a_line_joins_what_no_smaller_setting_surpasses(docs: Any) -> None:
    rows = [row(30, 20.0), row(20, 25.0), row(40, 30.0), row(40, 31.0), row(50, 31.0)]
    assert docs.frontier(rows) == [row(20, 25.0), row(40, 31.0)]


def test_the_best_up_to_a_size_may_be_smaller(docs: Any) -> None:
    rows = [row(20, 25.0), row(30, 24.0), row(40, 31.0)]
    assert docs.best_up_to(rows, 3.9) == row(20, 25.0)
    assert docs.best_up_to(rows, 1.9) is None


def test_rows_are_means_over_seeds_and_errors_are_apart(docs: Any) -> None:
    done = {"tool": "GGUF", "setting": "Q4_0", "nbytes": 50, "recommended": True}
    kept = docs.Kept(
        models={"m": {"weights": 100}},
        rows={
            "m 0 GGUF Q4_0": {**done, "psnr": 20.0},
            "m 1 GGUF Q4_0": {**done, "psnr": 22.0},
            "m 0 GGUF Q2_K": {"tool": "GGUF", "setting": "Q2_K", "error": "a | b"},
        },
    )
    (mean,) = docs.measured(kept)
    assert (mean["psnr"], mean["bits"], mean["seeds"]) == (21.0, 4.0, 2)
    assert mean["spread"] == pytest.approx(2**0.5)
    assert docs.failed_table(kept)[-1] == "| GGUF | Q2_K | m | a \\| b |"
