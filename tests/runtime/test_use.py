"""What people do with pipelines, done to a packed model: after the questions of diffusers' own quantization tests."""

import copy
import json

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from diffusers.hooks import apply_group_offloading
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import QuantizedLayer, quantized_module, save_packed
from qua2sedimo.runtime.table import layer_modules

from .helpers import mixed, output, pixart, unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = pixart()
    out = tmp_path_factory.mktemp("packed") / "out"
    save_packed(model, None, mixed(model), out)
    return out


@pytest.fixture
def loaded(folder) -> nn.Module:
    return type(pixart()).from_pretrained(folder, torch_dtype=torch.float32)


def test_memory_footprint_and_parameter_count(loaded, folder) -> None:
    plain = pixart()
    layers = [m for m in loaded.modules() if isinstance(m, QuantizedLayer)]
    assert loaded.get_memory_footprint() < 0.65 * plain.get_memory_footprint()  # tables weigh much in layers this small
    held = sum(p.numel() for p in loaded.parameters())
    assert held + sum(layer.weight.numel() for layer in layers) == sum(p.numel() for p in plain.parameters())
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert len(json.dumps(config)) < 2048


def test_only_what_was_quantized_is_converted(loaded, folder) -> None:
    """All layers but the last are packed; it, norms and tables are what they were."""
    *packed, last = layer_modules(loaded)
    assert all(isinstance(loaded.get_submodule(name), QuantizedLayer) for name in packed)
    assert type(loaded.get_submodule(last)) is nn.Linear
    plain = pixart()
    kept = {name: tensor for name, tensor in loaded.named_parameters() if not name.endswith("bias")}
    assert {f"{last}.weight", "scale_shift_table"} <= kept.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, plain.get_parameter(name).half().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_the_type_that_is_asked_for(folder, dtype: torch.dtype) -> None:
    model = type(pixart()).from_pretrained(folder, torch_dtype=dtype)
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert {layer.weight.dtype for layer in model.modules() if isinstance(layer, QuantizedLayer)} == {dtype}
    made = output(model)
    assert made.dtype == dtype and torch.isfinite(made).all()


def test_a_loaded_model_is_saved_in_shards_with_the_same_config(loaded, folder, tmp_path) -> None:
    expected = output(loaded)
    loaded.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 3
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    again = type(loaded).from_pretrained(tmp_path / "again", torch_dtype=torch.float32)
    assert torch.equal(output(again), expected)


def test_state_dict_goes_to_another_loaded_model(loaded, folder) -> None:
    expected = output(loaded)
    other = type(loaded).from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert not torch.equal(output(other), expected)
    other.load_state_dict(loaded.state_dict())
    assert torch.equal(output(other), expected)


def test_moves_are_possible_and_casts_are_refused_by_diffusers(loaded) -> None:
    expected = output(loaded)
    assert torch.equal(output(loaded.to("cpu")), expected)
    with pytest.raises(ValueError, match="Casting a quantized model"):
        loaded.to(torch.bfloat16)
    assert torch.equal(output(loaded), expected)


def test_offloading_layer_by_layer(loaded) -> None:
    expected = output(loaded)
    offloaded = cpu_offload(copy.deepcopy(loaded), execution_device=torch.device("cpu"), offload_buffers=True)
    assert any(t.is_meta for t in (*offloaded.parameters(), *offloaded.buffers()))
    assert torch.equal(output(offloaded), expected)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading(loaded, kind: str) -> None:
    expected = output(loaded)
    given = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(loaded, torch.device("cpu"), torch.device("cpu"), offload_type=kind, **given)
    assert torch.equal(output(loaded), expected)


def test_a_device_map_with_offload_to_disk(loaded, tmp_path) -> None:
    expected = output(loaded)
    places = {name: "cpu" for name, _ in loaded.named_children()} | {"transformer_blocks": "disk"}
    places["scale_shift_table"] = "cpu"
    dispatched = dispatch_model(
        copy.deepcopy(loaded), places, main_device="cpu", offload_dir=tmp_path, offload_buffers=True, force_hooks=True
    )
    assert torch.equal(output(dispatched), expected)


def test_the_compiled_model_decodes_with_the_kernel(loaded) -> None:
    expected, graphs = output(loaded), []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    loaded.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(output(loaded), expected)
    assert len(graphs) == 1
    layers = sum(isinstance(m, QuantizedLayer) for m in loaded.modules())
    assert sum("qua2sedimo.decode" in target for target in graphs[0]) >= layers - 1


@pytest.mark.parametrize("method", METHODS)
def test_exported_programs_decode_too(method: str) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3)
    values = [
        (span, METHODS[method].quantize(plain.weight.detach()[:, slice(*span)], [3])[0]) for span in ((0, 4), (4, 6))
    ]
    layer, x = quantized_module(plain, values), torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    value = values[0][1]
    levels = METHODS[method].levels(value.parameters, 3)
    torch.library.opcheck(torch.ops.qua2sedimo.decode.default, (value.codes, levels, 3, list(value.shape)))


def test_a_lora_adapter_works_unfused_and_is_refused_fused(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    model = unet()
    save_packed(model, None, mixed(model), tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    expected = output(loaded)
    loaded.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted = output(loaded)
    assert not torch.equal(adapted, expected)
    with pytest.raises(Qua2SeDiMoError, match="cannot be fused"):
        loaded.fuse_lora()
    loaded.disable_adapters()
    assert torch.equal(output(loaded), expected)
    loaded.enable_adapters()
    assert torch.equal(output(loaded), adapted)
