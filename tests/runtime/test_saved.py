"""`save_pretrained` of packed models and their pipelines: what is written loads again, or the reason is told."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, DiTTransformer2DModel, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import nn

import qua2sedimo
from qua2sedimo.denoisers import weight_modules
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import QuantizedLayer, dequantize, pack, save_packed, set_activation_bits

from .helpers import dit, output, packed, packed_here, pipeline, pixart, plain_twin, thin, unet

peft = pytest.importorskip("peft")
LORA = {"r": 2, "lora_alpha": 2, "init_lora_weights": False}


def read(folder: Path, **given: object) -> nn.Module:
    return DiTTransformer2DModel.from_pretrained(folder, **given)


def read_pipeline(folder: Path, **given: object) -> DiTPipeline:
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **given)


def picture(pipe: DiTPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    chance = torch.Generator().manual_seed(1)
    return torch.from_numpy(pipe([0], generator=chance, num_inference_steps=2, output_type="np").images)


def test_a_pipeline_quantized_in_memory_is_saved_packed_and_loads(tmp_path) -> None:
    pipe = pipeline(dit())
    qua2sedimo.quantize(pipe, 4.5, [0], effort="quick", arguments={"num_inference_steps": 2, "guidance_scale": 1.0})
    expected = picture(pipe)
    pipe.save_pretrained(tmp_path / "OUT")
    loaded = read_pipeline(tmp_path / "OUT")
    assert torch.equal(picture(loaded), expected) and torch.isfinite(expected).all()
    names = {n for n, m in pipe.transformer.named_modules() if isinstance(m, QuantizedLayer)}
    assert names and names == {n for n, m in loaded.transformer.named_modules() if isinstance(m, QuantizedLayer)}


@pytest.fixture(scope="module")
def live() -> nn.Module:
    return packed_here(dit())


@pytest.mark.parametrize("make", [pixart, unet])
def test_every_kind_of_layer_and_method_is_saved(make, tmp_path) -> None:
    model = packed_here(make())
    model.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path)), output(model))


def test_low_rank_parts_and_copies_are_saved_once(tmp_path) -> None:
    model = unet()
    first, second = "down_blocks.1.resnets.0.time_emb_proj", "up_blocks.0.resnets.0.time_emb_proj"
    modules = weight_modules(model)
    modules[second].load_state_dict(modules[first].state_dict())
    values = thin(model)
    whole = values.pop("up_blocks.1.resnets.0.conv1")
    half, most = whole.shape[1] // 2, whole.shape[1]
    weight = modules["up_blocks.1.resnets.0.conv1"].weight
    for (a, b), method in zip(((0, half), (half, most)), ("row", "kmeans_a")):
        part = METHODS[method].quantize(weight[:, a:b], [3])[0]
        values[f"up_blocks.1.resnets.0.conv1[{a}:{b}]"] = part
    del values[second]
    pack(model, values, {first: (second,)})
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(output(loaded), output(model))
    assert loaded.get_submodule(first) is loaded.get_submodule(second)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert not any(name.startswith(second) for name in index["weight_map"])


@pytest.mark.parametrize(
    "given", [{}, {"variant": "fp16"}, {"max_shard_size": "10KB"}, {"variant": "fp16", "max_shard_size": "10KB"}]
)
def test_variants_and_shards_of_models_and_pipelines(live, tmp_path, given: dict) -> None:
    expected = output(live)
    live.save_pretrained(tmp_path / "model", **given)
    of = {"variant": given["variant"]} if "variant" in given else {}
    assert torch.equal(output(read(tmp_path / "model", **of)), expected)
    pipe = pipeline(live)
    pipe.save_pretrained(tmp_path / "pipeline", **given)
    assert torch.equal(picture(read_pipeline(tmp_path / "pipeline", **of)), picture(pipe))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_loaded_model_is_saved_into_its_own_folder(tmp_path, variant: str | None) -> None:
    packed(dit(), tmp_path)
    model = read(tmp_path / "out")
    for given in ({}, {"max_shard_size": "10KB"}, {}):
        with torch.no_grad():
            model.proj_out_1.bias.add_(1)
        expected = output(model)
        model.save_pretrained(tmp_path / "out", variant=variant, **given)
        assert torch.equal(output(model), expected)
        model = read(tmp_path / "out", variant=variant)
        assert torch.equal(output(model), expected)


def test_a_variant_that_is_not_asked_for_is_named(live, tmp_path) -> None:
    live.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises((Qua2SeDiMoError, OSError)) as refused:
        read(tmp_path)
    assert "damaged" not in str(refused.value) and "variant" in str(refused.value)


def test_what_is_saved_again_has_checksums(live, tmp_path) -> None:
    live.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(Qua2SeDiMoError, match="not what was exported"):
        read(tmp_path)


def test_pickled_weights_are_refused_before_anything_is_written(live, tmp_path) -> None:
    for given in ({"safe_serialization": False}, {"use_flashpack": True}):
        with pytest.raises(Qua2SeDiMoError, match="safetensors only"):
            live.save_pretrained(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_push_to_the_hub_uploads_the_packed_files(live, tmp_path, monkeypatch) -> None:
    def upload(self: nn.Module, folder: str, repo_id: str, **_: object) -> None:
        shutil.copytree(folder, tmp_path / repo_id)

    monkeypatch.setattr("diffusers.utils.hub_utils.create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(type(live), "_upload_folder", upload)
    live.push_to_hub("packed", subfolder="transformer")
    assert torch.equal(output(read(tmp_path / "packed")), output(live))


def test_8_bit_activations_are_saved(tmp_path) -> None:
    model = set_activation_bits(packed_here(dit()), 8)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(read(tmp_path)), output(model))
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["act_bits"] == 8


def test_an_attached_adapter_is_named_and_nothing_is_written(tmp_path) -> None:
    model = packed_here(unet())
    expected = output(model)
    model.add_adapter(peft.LoraConfig(target_modules=["to_q"], **LORA))
    with pytest.raises(Qua2SeDiMoError, match="has an adapter attached") as refused:
        model.save_pretrained(tmp_path / "out")
    assert "save_lora_weights" in refused.value.remedy and not (tmp_path / "out").exists()
    model.unload_lora()
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(output(type(model).from_pretrained(tmp_path / "out")), expected)


def test_a_checkpoint_saved_with_an_adapter_names_the_adapter(tmp_path) -> None:
    """As an earlier version of this package, or another program, may have written it."""
    model = packed_here(unet())
    model.add_adapter(peft.LoraConfig(target_modules=["to_q"], **LORA))
    model.register_to_config(quantization_config=model.hf_quantizer.quantization_config)
    type(model).save_pretrained(model, tmp_path)
    with pytest.raises(Qua2SeDiMoError, match="saved with an adapter attached") as refused:
        type(model).from_pretrained(tmp_path)
    assert "damaged" not in str(refused.value)


def test_plain_weights_under_the_config_of_a_packed_model_are_named(live, tmp_path) -> None:
    type(live).from_config(live.config).save_pretrained(tmp_path)
    with pytest.raises(Qua2SeDiMoError, match=r"has the plain weight 'pos_embed\.proj\.weight'") as refused:
        read(tmp_path)
    assert "damaged" not in str(refused.value)


def test_a_layer_named_like_a_part_of_an_adapter_is_none(tmp_path) -> None:
    """Kandinsky 2 embeds text and images by `encoder_hid_proj.image_embeds`."""
    given = {"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 8, "cross_attention_dim": 32}
    sizes = {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 8}
    kinds = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
    model = packed_here(UNet2DConditionModel(sample_size=8, **given, **sizes, **kinds))
    assert any(name.startswith("encoder_hid_proj.image_") for name in model.state_dict())
    model.save_pretrained(tmp_path)
    UNet2DConditionModel.from_pretrained(tmp_path)


def test_a_layer_that_was_taken_out_is_named(tmp_path) -> None:
    model = packed_here(dit())
    del model.transformer_blocks[1]
    with pytest.raises(Qua2SeDiMoError, match=r"'transformer_blocks\.1\..*' was added, removed or replaced"):
        model.save_pretrained(tmp_path / "out")


def test_a_changed_module_is_named(tmp_path) -> None:
    model = packed_here(dit())
    model.extra = nn.Linear(2, 2)
    with pytest.raises(Qua2SeDiMoError, match=r"'extra\.bias' was added"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_packed_layer_that_was_made_plain_is_saved_as_such(tmp_path) -> None:
    model = packed_here(dit())
    dequantize(model.transformer_blocks[0])
    model.save_pretrained(tmp_path)
    loaded = read(tmp_path)
    assert torch.equal(output(loaded), output(model))
    assert type(loaded.transformer_blocks[0].attn1.to_q) is nn.Linear
    assert isinstance(loaded.transformer_blocks[1].attn1.to_q, QuantizedLayer)


def test_copies_are_independent_and_saved(live, tmp_path) -> None:
    twin = copy.deepcopy(live)
    expected = output(live)
    with torch.no_grad():
        for tensor in (*live.parameters(), *(b for b in live.buffers() if b.is_floating_point())):
            tensor.add_(0)
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1.5)
    assert torch.equal(output(live), expected)
    changed = output(twin)
    assert not torch.equal(changed, expected)
    twin.save_pretrained(tmp_path)
    assert torch.equal(output(read(tmp_path)), changed)


def test_an_average_of_a_model_in_training_is_stored_back_and_saved(tmp_path) -> None:
    model = packed_here(unet())
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=UNet2DConditionModel, model_config=model.config)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    ema.step(model.parameters())
    ema.copy_to(model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    model.save_pretrained(tmp_path / "averaged")
    assert torch.equal(output(UNet2DConditionModel.from_pretrained(tmp_path / "averaged")), output(model))
    with pytest.raises(Qua2SeDiMoError, match="average of a packed") as refused:
        ema.save_pretrained(tmp_path / "ema")
    assert "copy_to" in refused.value.remedy and not (tmp_path / "ema").exists()


def test_a_plain_model_is_averaged_as_before(tmp_path) -> None:
    model = unet()
    EMAModel(model.parameters(), model_cls=UNet2DConditionModel, model_config=model.config).save_pretrained(tmp_path)
    assert torch.equal(output(UNet2DConditionModel.from_pretrained(tmp_path)), output(model))


def test_a_model_that_is_made_plain_is_saved_as_a_plain_one(live, tmp_path) -> None:
    twin = plain_twin(live)
    twin.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(output(read(tmp_path)), output(twin))
    assert not any(name in twin.__dict__ for name in ("save_pretrained", "add_adapter", "hf_quantizer"))


def test_exporting_a_packed_model_again_is_refused(live, tmp_path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="already quantized"):
        save_packed(live, None, {}, tmp_path / "out")


def test_a_state_goes_to_models_packed_alike_and_not_between_packed_and_plain(live) -> None:
    twin = copy.deepcopy(live)
    twin.load_state_dict(live.state_dict())
    plain = dit()
    for strict in (True, False):
        with pytest.raises(Qua2SeDiMoError, match="cannot be loaded into a plain module"):
            plain.load_state_dict(live.state_dict(), strict=strict)
        with pytest.raises(Qua2SeDiMoError, match="cannot load the plain weight"):
            twin.load_state_dict(plain.state_dict(), strict=strict)
    assert torch.equal(output(twin), output(live))


def test_a_state_is_pickled_as_an_ordinary_one(live, tmp_path) -> None:
    torch.save(live.state_dict(), tmp_path / "state.pt")
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    again = copy.deepcopy(live.state_dict())
    assert found.keys() == again.keys() == live.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in live.state_dict().items())
    copy.deepcopy(live).load_state_dict(found)
