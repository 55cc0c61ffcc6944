"""GGUF files: diffusers loads them with our weights, they say what they are, and original names are the authors'."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import (
    FluxTransformer2DModel,
    GGUFQuantizationConfig,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils
from tests.conftest import choice_of, randomized, small_settings
from tests.runtime.helpers import dit, pixart
from tests.sweep.build import built
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import in_scope
from torch import nn

from qua2sedimo import Study
from qua2sedimo.denoisers.gguf_files import decoded_file
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.gguf_checksums import NAME
from qua2sedimo.interchange.gguf import save_gguf
from qua2sedimo.interchange.gguf.names import named
from qua2sedimo.interchange.targets import space_for
from qua2sedimo.options import Configuration, Option, options_for
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight
from qua2sedimo.runtime.table import layer_modules


def flux() -> nn.Module:
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=128,
        num_attention_heads=2, joint_attention_dim=256, pooled_projection_dim=256, axes_dims_rope=(16, 56, 56),
    )  # fmt: skip
    return randomized(model, 1)


def sd3() -> nn.Module:
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=64, num_attention_heads=4,
        joint_attention_dim=256, caption_projection_dim=256, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return randomized(model, 2)


def unet(**changes: Any) -> nn.Module:
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=8, norm_num_groups=8, **changes,
    )  # fmt: skip
    return randomized(model, 3)


XL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 256,
    "use_linear_projection": True,
}  # fmt: skip


def call_of(model: nn.Module) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance)

    time = torch.tensor([0.7])
    if isinstance(model, FluxTransformer2DModel):
        places = torch.zeros(16, 3), torch.zeros(5, 3)
        return {
            "hidden_states": draw(1, 16, 64), "timestep": time, "encoder_hidden_states": draw(1, 5, 256),
            "pooled_projections": draw(1, 256), "img_ids": places[0], "txt_ids": places[1],
        }  # fmt: skip
    if isinstance(model, SD3Transformer2DModel):
        return {
            "hidden_states": draw(1, 4, 8, 8), "timestep": time, "encoder_hidden_states": draw(1, 5, 256),
            "pooled_projections": draw(1, 64),
        }  # fmt: skip
    return {"sample": draw(1, 4, 8, 8), "timestep": time, "encoder_hidden_states": draw(1, 5, 64)}


def quantized(model: nn.Module, same: tuple[str, ...] = ()) -> dict[str, QuantizedWeight]:
    """Every Linear layer that a type holds, types in turn; layers whose name has one of ``same`` all alike."""
    values: dict[str, QuantizedWeight] = {}
    for name, layer in layer_modules(model).items():
        shape, weight = tuple(layer.weight.shape), layer.weight.detach().half()
        fitting = [o for o in options_for("gguf", shape) if len(shape) == 2]
        if len(fitting) > 1:
            alike = next((i for i, part in enumerate(same) if part in name), None)
            chosen = fitting[(len(values) if alike is None else alike) % len(fitting)]
            (values[name],) = METHODS[chosen.method].quantize(weight, [chosen.number])
    return values


def load(model: nn.Module, file: Path, folder: Path) -> nn.Module:
    """The model as diffusers alone loads it from a file."""
    model.save_config(folder)
    loaded: nn.Module = type(model).from_single_file(  # type: ignore[attr-defined]
        str(file), config=str(folder), quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32, local_files_only=True,
    )  # fmt: skip
    return loaded


def plain(model: nn.Module, values: dict[str, QuantizedWeight]) -> nn.Module:
    """The model with the weights that were written, all in 16 bits."""
    model.half().float()
    for name, value in values.items():
        model.get_submodule(name).weight.data.copy_(dequantize_weight(value))
    return model


@pytest.mark.parametrize("make", [flux, sd3, unet])
@torch.no_grad()
def test_diffusers_loads_the_file_and_computes_what_we_do(make: Any, tmp_path: Path) -> None:
    model = make()
    values = quantized(model)
    kinds = {v.option for v in values.values()}
    assert len(kinds) >= (6 if make is unet else 12), "all types that its rows allow"
    size = save_gguf(model, None, values, tmp_path / "model.gguf")
    assert size.quantized_bytes == sum(v.nbytes for v in values.values())
    loaded = load(model, tmp_path / "model.gguf", tmp_path)
    packed = [n for n, m in loaded.named_modules() if type(m).__name__ == "GGUFLinear"]
    assert set(packed) == {n for n, v in values.items() if v.method != "half"}
    expected = plain(model, values)(**call_of(model), return_dict=False)[0]
    found = loaded(**call_of(model), return_dict=False)[0]
    # diffusers computes scale · code − minimum in fp16, rounding each.
    lost = (found - expected).norm()
    assert lost < 3e-3 * expected.norm()
    coarse = {n: METHODS["gguf_0"].quantize(dequantize_weight(v), [4])[0] for n, v in values.items()}
    other = plain(model, coarse)(**call_of(model), return_dict=False)[0]
    assert (other - expected).norm() > 10 * lost, "the output depends on the weights"


def test_the_file_says_what_it_is_and_has_the_size_that_is_stated(tmp_path: Path) -> None:
    model = flux().bfloat16()
    values = {name: METHODS["gguf_k"].quantize(layer.weight, [4])[0]
              for name, layer in layer_modules(model).items() if layer.weight.shape[1] % 256 == 0}  # fmt: skip
    file = tmp_path / "model.gguf"
    size = save_gguf(model, None, values, file, {"model": "made/up"})
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "flux" and fields["general.name"] == "made/up"
    assert fields["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert json.loads(fields["qua2sedimo.config"])["_class_name"] == "FluxTransformer2DModel"
    info = json.loads(fields["qua2sedimo.info"])
    assert info["extra"] == {"model": "made/up"} and info["quantized_bytes"] == size.quantized_bytes
    assert size.denoiser_bytes == sum(t.n_bytes for t in reader.tensors)
    assert size.denoiser_bytes < file.stat().st_size < size.denoiser_bytes * 1.01
    tensors = {t.name: t for t in reader.tensors}
    assert tensors.keys() == model.state_dict().keys()
    for name, tensor in tensors.items():
        back = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        layer = name.removesuffix(".weight")
        if layer in values:
            assert tensor.tensor_type.name == "Q4_K"
            assert torch.equal(back.bfloat16(), dequantize_weight(values[layer]))
        else:
            assert tensor.tensor_type.name in ("F16", "F32")
            own = model.state_dict()[name].float()
            assert (back - own).norm() <= 1e-4 * own.norm()


class _Rows:
    """Tensors of a model's shapes with one column, every row its own number."""

    def __init__(self, model: nn.Module) -> None:
        at = 0
        self.tensors: dict[str, torch.Tensor] = {}
        for name, tensor in model.state_dict().items():
            rows = tensor.shape[0]
            self.tensors[name] = torch.arange(at, at + rows, dtype=torch.float64).view(-1, *[1] * (tensor.dim() - 1))
            at += rows

    def written(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """By the authors' names."""
        made = {}
        for one in named(model, "original", self.tensors):
            whole = torch.cat([self.tensors[part] for part in one.parts])
            made[one.name] = torch.cat(whole.chunk(2)[::-1]) if one.swapped else whole
        return made


@pytest.mark.parametrize("guidance", [False, True])
def test_original_names_of_flux_are_what_diffusers_converts(guidance: bool) -> None:
    """At the published width, which diffusers' converter has written in it."""
    with init_empty_weights():
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=guidance)
    rows = _Rows(model)
    back = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(rows.written(model))
    assert back.keys() == rows.tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in rows.tensors.items())


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}],
    ids=["3", "3.5 large", "3.5 medium"],
)
def test_original_names_of_sd3_are_what_diffusers_converts(changes: dict[str, Any]) -> None:
    with init_empty_weights():
        model = SD3Transformer2DModel(num_layers=3, **changes)
    rows = _Rows(model)
    back = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(rows.written(model))
    assert back.keys() == rows.tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in rows.tensors.items())


def test_original_names_of_pixart_are_those_of_its_checkpoints() -> None:
    """diffusers has no converter in its package; names and shapes of PixArt-XL-2-1024-MS are written down here."""
    with init_empty_weights():
        model = PixArtTransformer2DModel(
            sample_size=128, caption_channels=4096
        )  # 128 brings conditions on size and aspect ratio
    own = model.state_dict()
    found = {}
    for one in named(model, "original", own):
        assert not one.swapped
        found[one.name] = torch.cat([torch.empty(own[part].shape) for part in one.parts]).shape
    d, last = 1152, 27
    linear = {
        "x_embedder.proj": (d, 4, 2, 2), "t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d),
        "csize_embedder.mlp.0": (d // 3, 256), "csize_embedder.mlp.2": (d // 3, d // 3),
        "ar_embedder.mlp.0": (d // 3, 256), "ar_embedder.mlp.2": (d // 3, d // 3), "t_block.1": (6 * d, d),
        "y_embedder.y_proj.fc1": (d, 4096), "y_embedder.y_proj.fc2": (d, d), "final_layer.linear": (32, d),
    }  # fmt: skip
    in_block = {
        "attn.qkv": (3 * d, d), "attn.proj": (d, d), "cross_attn.q_linear": (d, d), "cross_attn.kv_linear": (2 * d, d),
        "cross_attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d),
    }  # fmt: skip
    linear |= {f"blocks.{i}.{name}": shape for i in range(last + 1) for name, shape in in_block.items()}
    expected = {f"{name}.weight": shape for name, shape in linear.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    expected |= {f"blocks.{i}.scale_shift_table": (6, d) for i in range(last + 1)}
    expected |= {"final_layer.scale_shift_table": (2, d)}
    assert {name: tuple(shape) for name, shape in found.items()} == expected


@torch.no_grad()
def test_diffusers_loads_sd3_with_original_names(tmp_path: Path) -> None:
    model = sd3()
    values = quantized(model, same=("attn.to_", "attn.add_"))
    save_gguf(model, None, values, tmp_path / "model.gguf", names="original")
    loaded = load(model, tmp_path / "model.gguf", tmp_path)
    expected = plain(model, values)(**call_of(model)).sample
    assert (loaded(**call_of(model)).sample - expected).norm() < 3e-3 * expected.norm()


@pytest.mark.parametrize("changes", [{}, XL], ids=["SD 1.5", "SDXL"])
def test_original_names_of_unets_are_what_diffusers_converts(changes: dict[str, Any]) -> None:
    model = unet(**changes)
    rows = _Rows(model)
    back = single_file_utils.convert_ldm_unet_checkpoint(rows.written(model), dict(model.config))
    assert back.keys() == rows.tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in rows.tensors.items())


@torch.no_grad()
def test_diffusers_loads_a_unet_with_original_names(tmp_path: Path) -> None:
    model = unet()
    values = quantized(model)
    save_gguf(model, None, values, tmp_path / "model.gguf", names="original")
    names = {t.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight" in names
    loaded = load(model, tmp_path / "model.gguf", tmp_path)
    expected = plain(model, values)(**call_of(model)).sample
    assert (loaded(**call_of(model)).sample - expected).norm() < 3e-3 * expected.norm()


def test_flux_with_original_names_has_fused_tensors_of_one_type(tmp_path: Path) -> None:
    model = flux()
    values = quantized(model, same=("attn.to_", "attn.add_", "proj_mlp"))
    attention = values["single_transformer_blocks.0.attn.to_q"]
    mlp = values["single_transformer_blocks.0.proj_mlp"]
    with pytest.raises(
        Qua2SeDiMoError, match=r"'single_blocks.0.linear1.weight' holds .* whose types differ: Q4_0, Q8_0"
    ):
        save_gguf(model, None, values, tmp_path / "model.gguf", names="original")
    assert not list(tmp_path.iterdir())
    weight = model.single_transformer_blocks[0].proj_mlp.weight
    (mlp,) = METHODS[attention.method].quantize(weight, [attention.number])
    values["single_transformer_blocks.0.proj_mlp"] = mlp
    save_gguf(model, None, values, tmp_path / "model.gguf", names="original")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    fused = tensors["single_blocks.0.linear1.weight"]
    back = torch.from_numpy(gguf.quants.dequantize(fused.data, fused.tensor_type))
    parts = [values[f"single_transformer_blocks.0.{part}"] for part in ("attn.to_q", "attn.to_k", "attn.to_v")]
    assert torch.equal(back, torch.cat([METHODS[v.method].dequantized(v) for v in (*parts, mlp)]))
    swapped = tensors["final_layer.adaLN_modulation.1.weight"]
    back = torch.from_numpy(gguf.quants.dequantize(swapped.data, swapped.tensor_type))
    scale, shift = dequantize_weight(values["norm_out.linear"]).float().chunk(2)
    torch.testing.assert_close(back, torch.cat([shift, scale]), rtol=1e-3, atol=1e-6)


def test_a_choice_with_mixed_options_gets_the_largest_where_names_fuse_layers(tmp_path: Path) -> None:
    """Query, key and value are one tensor of one type; those of a smaller one are rounded anew, by their statistics."""
    pipeline = built(in_scope()["FluxPipeline"], ENTRIES["FluxPipeline"])
    config = pipeline.transformer.config
    pipeline.register_modules(
        transformer=FluxTransformer2DModel(
            in_channels=config.in_channels, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=config.joint_attention_dim,
            pooled_projection_dim=config.pooled_projection_dim, axes_dims_rope=(4, 4, 8),
        )
    )  # fmt: skip
    settings = small_settings(
        model="flux", inputs=["a fox"], arguments=dict(ENTRIES["FluxPipeline"].arguments), target="gguf",
        options="gguf_0-4,gguf_0-8", observe=2,
    )  # fmt: skip
    study = Study.create(tmp_path / "study", settings, pipeline)
    inside = study.workspace
    small, large = Option("gguf_0", 4), Option("gguf_0", 8)
    chosen = {name: large if name.endswith(("attn.to_k", "proj_mlp")) else small for name in inside.space.layers}
    fused = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    assert {chosen[name] for name in fused} == {small, large}
    choice = choice_of(study, Configuration(chosen))
    study.export(choice, tmp_path / "out.gguf", form="gguf-original", any_size=True)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    found = tensors["double_blocks.0.img_attn.qkv.weight"]
    assert found.tensor_type.name == "Q8_0"
    back = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type)).chunk(3)
    for name, part in zip(fused, back):
        moment = inside.observed(name).moment
        (expected,) = METHODS["gguf_0"].quantize(inside.weight(name), [8], moment)
        assert torch.equal(part, METHODS["gguf_0"].dequantized(expected)), name
    assert tensors["double_blocks.0.img_attn.proj.weight"].tensor_type.name == "Q4_0"
    study.export(choice, tmp_path / "own.gguf", form="gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "own.gguf").tensors}
    assert [kinds[f"{name}.weight"] for name in fused] == ["Q4_0", "Q8_0", "Q4_0"]


def test_what_has_no_place_in_the_format_is_refused_or_written_plain(tmp_path: Path) -> None:
    model = pixart().half()
    values = {n: METHODS["row"].quantize(m.weight, [4])[0] for n, m in layer_modules(model).items()}
    with pytest.raises(Qua2SeDiMoError, match=r"GGUF's format has no form as small for 27 of 27 layers") as error:
        save_gguf(model, None, values, tmp_path / "out.gguf")
    assert "--for gguf" in error.value.remedy and not list(tmp_path.iterdir())
    save_gguf(model, None, values, tmp_path / "out.gguf", any_size=True)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    for name, value in values.items():
        assert torch.equal(torch.from_numpy(tensors[f"{name}.weight"].data.copy()), dequantize_weight(value))
    with pytest.raises(Qua2SeDiMoError, match="original names of DiTTransformer2DModel are not known") as error:
        save_gguf(dit().half(), None, one_layer(), tmp_path / "other.gguf", any_size=True, names="original")
    assert "--format gguf" in error.value.remedy


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that this program wrote."""
    path = tmp_path_factory.mktemp("own") / "own.gguf"
    save_gguf(dit().half(), None, one_layer(), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file of another program."""
    path = tmp_path_factory.mktemp("foreign") / "foreign.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_array("a.list", ["of", "texts"])
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("a", gguf.quants.quantize(np.ones((4, 32), np.float32), kind), raw_dtype=kind)
    writer.add_array("comfy.gguf.orig_shape.b", [4, 8])
    writer.add_tensor("b", np.arange(32, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def one_layer() -> dict[str, QuantizedWeight]:
    name = "transformer_blocks.0.attn1.to_q"
    return {name: METHODS["gguf_0"].quantize(dit().half().get_submodule(name).weight, [8])[0]}


def test_only_files_of_this_program_are_replaced(own: bytes, foreign: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    for _ in range(2):
        save_gguf(dit().half(), None, one_layer(), path)
        assert path.read_bytes() == own
    changed = own[:-9] + b"\1" + own[-8:]
    others = "was not written by this program"
    for content, words in ((b"mine", others), (foreign, others), (changed, "not what was exported")):
        path.write_bytes(content)
        with pytest.raises(Qua2SeDiMoError, match=words):
            save_gguf(dit().half(), None, one_layer(), path)
        assert path.read_bytes() == content
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, words in (("pipe.gguf", "is there, and was not"), ("folder", "a GGUF export is a file")):
        with pytest.raises(Qua2SeDiMoError, match=words):
            save_gguf(dit().half(), None, one_layer(), tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="files are limited otherwise")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_export_without_room_says_so_and_leaves_nothing(own: bytes, tmp_path: Path, share: float) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(own)), before[1]))
    try:
        with pytest.raises(Qua2SeDiMoError, match=r"cannot write .*out\.gguf: .*; it needs .* are free") as caught:
            save_gguf(dit().half(), None, one_layer(), tmp_path / "out.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Free disk space" in str(caught.value.remedy) and not list(tmp_path.iterdir())


def test_any_changed_byte_of_an_export_is_noticed_when_it_is_read(own: bytes, tmp_path: Path) -> None:
    path, chance = tmp_path / "model.gguf", random.Random(0)
    path.write_bytes(own)
    with decoded_file(path) as decoded:
        assert decoded.exists()
    spared = range(own.index(NAME.encode()), own.index(NAME.encode()) + len(NAME) + 12)  # without it, it is of others
    for at in [*range(0, 400, 11), *(chance.randrange(len(own)) for _ in range(40))]:
        if at in spared:
            continue
        path.write_bytes(own[:at] + bytes([own[at] ^ 1 << chance.randrange(8)]) + own[at + 1 :])
        with pytest.raises(Qua2SeDiMoError, match=r"model\.gguf is not what was exported"), decoded_file(path):
            pass


def test_a_damaged_head_of_a_file_is_refused_at_once(foreign: bytes, tmp_path: Path) -> None:
    """Counts that were damaged would have the library read on until memory is full."""
    path, refused = tmp_path / "model.gguf", 0
    for at in range(0, len(foreign), 3):
        for bad in (b"\xff" * 8, b"\0\0\0\x80"):
            path.write_bytes(foreign[:at] + bad + foreign[at + len(bad) :])
            try:
                with decoded_file(path):
                    pass
            except Qua2SeDiMoError as error:
                assert "model.gguf" in error.message
                refused += 1
        path.write_bytes(foreign[:at])
        with pytest.raises(Qua2SeDiMoError, match=r"model\.gguf"), decoded_file(path):
            pass
    assert refused > 100


def test_a_space_for_gguf_has_its_types_for_linear_layers_alone() -> None:
    shapes = {"wide": (4096, 512), "middle": (512, 96), "odd": (5, 7), "conv": (64, 32, 3, 3), "small": (16, 64)}
    space = space_for("gguf", shapes, "default", torch.float16)
    assert set(space.layers) == {"wide", "middle", "small"}
    simple = {"gguf_0", "gguf_1", "gguf_nl"}
    methods = {name: {o.method for o in options} for name, options in space.options.items()}
    assert methods == {"wide": simple | {"gguf_k"}, "middle": simple | {"half"}, "small": simple | {"half"}}
    chosen = space_for("gguf", shapes, "gguf_k-3,gguf_0-4,half-16,row-3", torch.float16)
    assert chosen.options["wide"] == tuple(sorted((Option("gguf_k", 3), Option("gguf_0", 4), Option("half", 16))))
    assert chosen.options["middle"] == (Option("gguf_0", 4), Option("half", 16))
    narrow = {"conv": (64, 32, 3, 3), "odd": (5, 7), "linear": (64, 40)}
    with pytest.raises(Qua2SeDiMoError, match=r"gguf holds none .* any layer: 'conv' .*'odd' \[5, 7\], 'linear'") as e:
        space_for("gguf", narrow, "default", torch.float16)
    assert "multiple of 32" in e.value.remedy
