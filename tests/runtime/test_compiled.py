"""Packed models under torch.compile and torch.export, alone, offloaded, and block by block."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import cpu_offload
from tests.methods import ANY_SHAPE
from torch import nn

from qua2sedimo.quantizers import LEVEL_METHODS, METHODS
from qua2sedimo.runtime import QuantizedLayer, quantized_module, set_activation_bits

from .helpers import output, packed, pixart


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed(pixart(), tmp_path_factory.mktemp("packed"))


@pytest.fixture
def loaded(folder) -> Iterator[nn.Module]:
    torch.compiler.reset()
    yield type(pixart()).from_pretrained(folder, torch_dtype=torch.float32)
    torch.compiler.reset()


def test_the_compiled_model_decodes_with_the_kernel(loaded) -> None:
    expected, graphs = output(loaded), []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    loaded.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(output(loaded), expected)
    assert len(graphs) == 1
    packed = [m for m in loaded.modules() if isinstance(m, QuantizedLayer)]
    layers = sum(m.parts[0].storage.option.method in LEVEL_METHODS for m in packed)
    assert sum("qua2sedimo.decode" in target for target in graphs[0]) >= layers - 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_program_is_compiled_and_used_again(loaded, backend: str) -> None:
    expected = output(loaded)
    loaded.compile(fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            torch.testing.assert_close(output(loaded), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act_bits", [None, 8])
def test_repeated_blocks_compile_alone(loaded, monkeypatch, act_bits: int | None) -> None:
    expected = output(set_activation_bits(loaded, act_bits))
    monkeypatch.setattr(type(loaded), "_repeated_blocks", ["BasicTransformerBlock"])
    loaded.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(output(loaded), expected)


@pytest.mark.parametrize("kind", ["groups", "layers"])
def test_an_offloaded_model_compiles(loaded, kind: str) -> None:
    expected, cpu = output(loaded), torch.device("cpu")
    if kind == "groups":
        loaded.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    else:
        cpu_offload(loaded, execution_device=cpu, offload_buffers=True)
    with torch._dynamo.config.patch(cache_size_limit=1000):
        loaded.compile(backend="eager")
        for _ in range(2):
            torch.testing.assert_close(output(loaded), expected)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [3, 30])
def test_low_rank_layers_compile(rank: int, backend: str) -> None:
    """Through their factors, or decoded."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    layer = quantized_module(plain, METHODS["lowrank"].quantize(plain.weight.detach(), [rank])[0])
    x = torch.randn(5, 64)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("method", ANY_SHAPE)
def test_exported_programs_decode_too(method: str) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3)
    values = [
        (span, METHODS[method].quantize(plain.weight.detach()[:, slice(*span)], [3])[0]) for span in ((0, 4), (4, 6))
    ]
    layer, x = quantized_module(plain, values), torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    value = values[0][1]
    if method not in LEVEL_METHODS:
        return
    levels = LEVEL_METHODS[method].levels(value.parameters, 3)
    torch.library.opcheck(torch.ops.qua2sedimo.decode.default, (value.codes, levels, 3, list(value.shape)))
