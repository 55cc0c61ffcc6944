"""A packed checkpoint loads with stock diffusers calls and computes what was measured."""

import copy
import itertools
import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from safetensors import safe_open
from tests.methods import ANY_SHAPE
from torch import nn

from qua2sedimo.denoisers import parse_unit
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight
from qua2sedimo.runtime import QuantizedLayer, dequantize, quantized_layers, replace_layers, save_packed
from qua2sedimo.runtime import checkpoint as checkpoint_module
from qua2sedimo.runtime.table import layer_modules

from .helpers import dit, mixed, output, pipeline, pixart, simulate, thin, unet


@pytest.mark.parametrize("make", [pixart, dit, unet])
@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16])
def test_reloaded_output_equals_the_simulation_bit_for_bit(make, trained_in, tmp_path) -> None:
    model = make().to(trained_in)
    values = dict(mixed(model))
    save_packed(model, None, values, tmp_path / "out")
    for torch_dtype in (None, torch.float32, torch.bfloat16):
        loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch_dtype)
        reference = simulate(model, values, tmp_path / "plain", torch_dtype)
        assert loaded.dtype == reference.dtype
        assert sum(isinstance(m, QuantizedLayer) for m in loaded.modules()) == len(values)
        assert torch.equal(output(loaded), output(reference))
    assert isinstance(AutoModel.from_pretrained(str(tmp_path / "out")), type(model))


@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ANY_SHAPE)
def test_every_method_and_width_survives_the_file(method: str, trained_in: torch.dtype, tmp_path) -> None:
    model = unet().to(trained_in)
    layers = layer_modules(model)
    widths = {name: 1 + i % 8 for i, name in enumerate(layers)}
    values = {n: METHODS[method].quantize(m.weight, [widths[n]])[0] for n, m in layers.items()}
    save_packed(model, None, values, tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.float16)
    for name, value in values.items():
        layer = loaded.get_submodule(name)
        assert [part.storage.option for part in layer.parts] == [Option(method, widths[name])]
        assert torch.equal(layer.weight, dequantize_weight(value).half())
        assert torch.equal(dequantize_weight(layer.quantized_weights()[0]), dequantize_weight(value))
    weights = {name: loaded.get_submodule(name).weight for name in values}
    dequantize(loaded)
    assert all(torch.equal(loaded.get_submodule(name).weight, weight) for name, weight in weights.items())


@pytest.mark.parametrize("rank", [1, 5])
def test_low_rank_layers_compute_after_the_file_what_they_did_before(rank: int, tmp_path) -> None:
    model = dit()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()  # as the file holds what is not quantized
    values = thin(model, rank)
    save_packed(model, None, values, tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    replace_layers(model, quantized_layers(model, values))
    expected = output(model)
    assert torch.equal(output(loaded), expected)
    torch.testing.assert_close(output(dequantize(loaded)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (("uaq-4", "kmeans_c-2", "kmeans_a-8"), 4),
        (("uaq-4", "row-4"), 5),
        (("lowrank-3",), 5),
        (("uaq-1", "kmeans_a-3"), 5),
    ],
)
def test_the_format_version_is_the_first_that_has_the_options(options: tuple[str, ...], version: int, tmp_path) -> None:
    """So that older programs load what they know."""
    model = dit()
    chosen = zip(layer_modules(model).items(), itertools.cycle(map(Option.parse, options)))
    values = {n: METHODS[o.method].quantize(m.weight.detach(), [o.number])[0] for (n, m), o in chosen}
    save_packed(model, None, values, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    info = json.loads((tmp_path / "out" / "qua2sedimo.json").read_text())
    assert config["format_version"] == info["format_version"] == version
    loaded = type(model).from_pretrained(tmp_path / "out")
    for name, value in values.items():
        assert torch.equal(loaded.get_submodule(name).weight, dequantize_weight(value).float())
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"] == config


def test_bytes_on_disk_are_those_of_the_accounting(tmp_path) -> None:
    model = unet()
    values = dict(mixed(model))
    size = save_packed(model, None, iter(values.items()), tmp_path / "out", {"study": "newts"})
    prefixes = tuple(f"{name}." for name in values)
    on_disk = others = 0
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                tensor = handle.get_tensor(name)
                packed = name.startswith(prefixes) and not name.endswith(".bias")
                on_disk += tensor.nbytes if packed else 0
                others += 0 if packed else tensor.nbytes
                assert tensor.element_size() <= 2
    assert size.quantized_bytes == on_disk == sum(value.nbytes for value in values.values())
    assert size.denoiser_bytes == on_disk + others
    assert size.average_bits == 8 * on_disk / sum(dequantize_weight(value).numel() for value in values.values())
    info = json.loads((tmp_path / "out" / "qua2sedimo.json").read_text())
    assert info["average_bits"] == size.average_bits and info["extra"] == {"study": "newts"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(json.dumps(config["quantization_config"])) < 2048


def test_a_whole_pipeline_loads_in_a_new_process(tmp_path) -> None:
    model = dit()
    values = dict(mixed(model))
    save_packed(pipeline(model), None, values, tmp_path / "out")
    code = (
        "import sys, torch, qua2sedimo.runtime\n"
        "from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "pipe.set_progress_bar_config(disable=True)\n"
        "torch.set_num_threads(1)\n"
        "image = pipe([0], 2.0, torch.Generator().manual_seed(5), 2, output_type='np').images\n"
        "torch.save(torch.from_numpy(image), sys.argv[2])\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "image.pt")]
    subprocess.run(arguments, check=True, env={"PYTHONPATH": ":".join(sys.path)}, cwd=tmp_path)
    reference = pipeline(simulate(model, values, tmp_path / "plain"))
    reference.set_progress_bar_config(disable=True)
    image = reference([0], 2.0, torch.Generator().manual_seed(5), 2, output_type="np").images
    assert torch.equal(torch.load(tmp_path / "image.pt", weights_only=True), torch.from_numpy(image))


def test_saving_leaves_the_pipeline_as_it_was(tmp_path) -> None:
    model = dit()
    pipe = pipeline(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_packed(pipe, "transformer", mixed(model), tmp_path / "out")
    assert pipe.transformer is model and "save_pretrained" not in vars(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert loaded.transformer.dtype == loaded.vae.dtype == torch.bfloat16


def test_a_loaded_model_can_be_saved_dequantized_and_mapped_to_a_device(tmp_path) -> None:
    model = dit()
    save_packed(model, None, mixed(model), tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out", device_map={"": "cpu"})
    expected = output(loaded)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(output(type(model).from_pretrained(tmp_path / "again")), expected)
    assert torch.equal(output(copy.deepcopy(loaded)), expected)
    dequantize(loaded).save_pretrained(tmp_path / "plain")
    plain = type(model).from_pretrained(tmp_path / "plain")
    assert not any(isinstance(m, QuantizedLayer) for m in plain.modules())
    assert torch.equal(output(plain), expected)


def test_diffusers_own_dequantize_works_too(tmp_path) -> None:
    model = dit()
    save_packed(model, None, mixed(model), tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    expected = output(loaded)
    assert torch.equal(output(loaded.dequantize()), expected)
    assert "quantization_config" not in loaded.config and not loaded.is_quantized


def test_many_shards(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint_module, "SHARD_BYTES", 20_000)
    model = dit()
    values = dict(mixed(model))
    save_packed(model, None, values, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert torch.equal(output(loaded), output(simulate(model, values, tmp_path / "plain")))


def test_modules_that_diffusers_keeps_in_fp32_stay_in_fp32(tmp_path, monkeypatch) -> None:
    model = dit()
    monkeypatch.setattr(type(model), "_keep_in_fp32_modules", ["proj_out_2"])
    name = "proj_out_2"
    save_packed(model, None, {name: METHODS["uaq"].quantize(model.proj_out_2.weight, [4])[0]}, tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded.proj_out_2.weight.dtype == loaded.proj_out_2.bias.dtype == torch.float32


def split(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Every convolution of the up blocks in two parts, everything else whole."""
    values = {}
    for i, (name, module) in enumerate(layer_modules(model).items()):
        weight = module.weight.detach()
        if "up_blocks" in name and "conv" in name and weight.shape[1] > 4:
            for a, b in ((0, 5), (5, weight.shape[1])):
                values[f"{name}[{a}:{b}]"] = METHODS["uaq"].quantize(weight[:, a:b], [3 + (a + i) % 3])[0]
        else:
            values[name] = METHODS["kmeans_a"].quantize(weight, [4])[0]
    return values


def test_layers_in_parts_survive_the_file(tmp_path) -> None:
    model = unet().half().float()  # biases are stored in 16 bits
    values = split(model)
    assert any("[" in name for name in values)
    size = save_packed(model, None, values, tmp_path / "out")
    assert size.quantized_bytes == sum(value.nbytes for value in values.values())
    loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    for name, value in values.items():
        module, span = parse_unit(name)
        weight = loaded.get_submodule(module).weight
        assert torch.equal(weight if span is None else weight[:, slice(*span)], dequantize_weight(value).float())
    replace_layers(model, quantized_layers(model, values))
    assert torch.equal(output(loaded), output(model))


def test_parts_that_do_not_make_up_a_layer_are_refused(tmp_path) -> None:
    model = unet()
    values = split(model)
    del values[next(name for name in values if "[0:5]" in name)]
    with pytest.raises(Qua2SeDiMoError, match="do not cover layer"):
        save_packed(model, None, values, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def copied() -> tuple[nn.Module, dict[str, QuantizedWeight], dict[str, tuple[str, ...]]]:
    """A DiT whose timestep MLPs are equal in every block, with one value for each pair of equal layers."""
    model = dit()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()  # as the file holds what is not quantized
    first, second = (block.norm1.emb.timestep_embedder for block in model.transformer_blocks)
    second.load_state_dict(first.state_dict())
    place = "transformer_blocks.{}.norm1.emb.timestep_embedder.{}"
    copies = {place.format(0, n): (place.format(1, n),) for n in ("linear_1", "linear_2")}
    same = {name for names in copies.values() for name in names}
    modules = {name: m for name, m in layer_modules(model).items() if name not in same}
    return model, {n: METHODS["uaq"].quantize(m.weight.detach(), [4])[0] for n, m in modules.items()}, copies


def test_copies_are_stored_once_and_loaded_everywhere(tmp_path) -> None:
    model, values, copies = copied()
    apart = save_packed(model, None, values, tmp_path / "apart").denoiser_bytes
    size = save_packed(model, None, values, tmp_path / "out", copies=copies)
    assert size.quantized_bytes == sum(value.nbytes for value in values.values())
    assert size.denoiser_bytes < apart
    loaded = type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    for name, names in copies.items():
        for copy_ in names:
            assert loaded.get_submodule(copy_) is loaded.get_submodule(name)
    layers = quantized_layers(model, values, copies)
    assert len({id(layer) for layer in layers.values()}) == len(values) < len(layers)
    replace_layers(model, layers)
    assert torch.equal(output(loaded), output(model))


def test_layers_that_are_no_copies_are_refused_as_such(tmp_path) -> None:
    model, values, copies = copied()
    with torch.no_grad():
        model.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias.add_(1)
    with pytest.raises(Qua2SeDiMoError, match="given as copies, but differ"):
        save_packed(model, None, values, tmp_path / "out", copies=copies)
