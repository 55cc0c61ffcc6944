"""What people do with pipelines, done to a packed model: after the questions of diffusers' own quantization tests."""

import copy
import json

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from diffusers.hooks import apply_group_offloading
from torch import nn

from qua2sedimo.runtime import QuantizedLayer
from qua2sedimo.runtime.table import layer_modules

from .helpers import output, packed, pixart


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed(pixart(), tmp_path_factory.mktemp("packed"))


@pytest.fixture
def loaded(folder) -> nn.Module:
    return type(pixart()).from_pretrained(folder, torch_dtype=torch.float32)


def test_memory_footprint_and_parameter_count(loaded, folder) -> None:
    plain = pixart()
    layers = [m for m in loaded.modules() if isinstance(m, QuantizedLayer)]
    assert loaded.get_memory_footprint() < 0.65 * plain.get_memory_footprint()  # tables weigh much in layers this small
    held = sum(p.numel() for p in loaded.parameters() if p.is_floating_point())
    assert held + sum(layer.weight.numel() for layer in layers) == sum(p.numel() for p in plain.parameters())
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert len(json.dumps(config)) < 2048


def test_only_what_was_quantized_is_converted(loaded, folder) -> None:
    """All layers but the last are packed; it, norms and tables are what they were."""
    *packed, last = layer_modules(loaded)
    assert all(isinstance(loaded.get_submodule(name), QuantizedLayer) for name in packed)
    assert type(loaded.get_submodule(last)) is nn.Linear
    plain = pixart()
    floats = {name: tensor for name, tensor in loaded.named_parameters() if tensor.is_floating_point()}
    kept = {name: tensor for name, tensor in floats.items() if not name.endswith("bias")}
    assert {f"{last}.weight", "scale_shift_table"} <= kept.keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, plain.get_parameter(name).half().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_computes_in_the_type_that_is_asked_for(folder, dtype: torch.dtype) -> None:
    model = type(pixart()).from_pretrained(folder, torch_dtype=dtype)
    assert {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()} == {dtype} == {model.dtype}
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


def test_the_config_of_a_loaded_model_tells_how_it_is_quantized(loaded, folder) -> None:
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = loaded.config["quantization_config"]
    assert config.to_dict() == json.loads(config.to_json_string()) == written
    assert loaded.config["_pre_quantization_dtype"] == torch.float32
    assert loaded.hf_quantizer.is_serializable and loaded.hf_quantizer.is_compileable


@pytest.mark.parametrize("place", ["cpu", "auto", "balanced", "sequential", {"": "cpu"}])
def test_device_maps(folder, place: object) -> None:
    model = type(pixart()).from_pretrained(folder, torch_dtype=torch.float32, device_map=place)
    assert set(map(str, model.hf_device_map.values())) == {"cpu"} and model.device == torch.device("cpu")
    assert torch.equal(output(model), output(type(model).from_pretrained(folder, torch_dtype=torch.float32)))


@pytest.mark.parametrize("whole", [False, True])
def test_a_device_map_that_needs_the_disk(loaded, folder, tmp_path, whole: bool) -> None:
    places = {"device_map": {"": "disk"}} if whole else {"device_map": "auto", "max_memory": {"cpu": "60KB"}}
    model = type(loaded).from_pretrained(folder, torch_dtype=torch.float32, offload_folder=tmp_path, **places)
    assert "disk" in model.hf_device_map.values() and any(t.is_meta for t in model.parameters())
    assert torch.equal(output(model), output(loaded))


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_to_disk_instead(loaded, tmp_path, kind: str) -> None:
    expected, cpu = output(loaded), torch.device("cpu")
    given = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    loaded.enable_group_offload(cpu, cpu, kind, offload_to_disk_path=str(tmp_path), **given)
    assert any(tmp_path.iterdir())
    assert torch.equal(output(loaded), expected)


def test_state_dict_goes_to_another_loaded_model(loaded, folder) -> None:
    expected = output(loaded)
    other = type(loaded).from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert not torch.equal(output(other), expected)
    other.load_state_dict(loaded.state_dict())
    assert torch.equal(output(other), expected)


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
