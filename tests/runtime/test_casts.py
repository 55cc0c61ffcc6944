"""Casts of packed models, and what else diffusers builds from a loaded one: other pipelines, IP-Adapter, ControlNet."""

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNetMotionModel
from tests.denoisers.coverage.check import built
from tests.methods import ANY_SHAPE
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import dequantize_weight
from qua2sedimo.runtime import QuantizedLayer, set_activation_bits

from .helpers import every_layer, inputs, inputs_of, output, packed, packed_here, pixart, plain_twin, unet

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def pipeline(model: nn.Module) -> StableDiffusionPipeline:
    empty = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=10, steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(**empty, unet=model, scheduler=scheduler, requires_safety_checker=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return packed(unet(), tmp_path_factory.mktemp("packed"))


@pytest.fixture
def loaded(folder) -> nn.Module:
    return type(unet()).from_pretrained(folder, torch_dtype=torch.float32)


def packed_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    return {f"{n}.{name}": getattr(m, name).clone() for n, m in layers.items() for name in m.packed_names()}


@pytest.mark.parametrize("method", ANY_SHAPE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_of_any_kind_is_cast_exactly(method: str, dtype: torch.dtype) -> None:
    for name, layer in every_layer(method).items():
        stored = [(part, dequantize_weight(value)) for part, value in zip(layer.parts, layer.quantized_weights())]
        layer.to(torch.bfloat16).to(dtype)
        assert layer.compute_dtype == layer.weight.dtype == layer(inputs_of(layer).to(dtype)).dtype == dtype, name
        for part, weight in stored:
            assert torch.equal(part.of(layer.weight.as_subclass(torch.Tensor)), weight.to(dtype)), name


@pytest.mark.parametrize("make", [pixart, unet])
@pytest.mark.parametrize("cast", ["to", "to with device", "half", "bfloat16", "float", "double", "pipeline"])
def test_a_model_is_cast_as_its_plain_twin(make, cast: str) -> None:
    model = packed_here(make())
    before = packed_tensors(model)
    twin = plain_twin(model)
    for one in (model, twin):
        if cast.startswith("to"):
            one.to(torch.bfloat16) if cast == "to" else one.to(device="cpu", dtype=torch.bfloat16)
        elif cast == "pipeline":
            pipeline(one).to(torch.float16)
        else:
            getattr(one, cast)()
    assert model.dtype == twin.dtype and torch.isfinite(output(model)).all()
    assert torch.equal(output(model), output(twin))
    after = packed_tensors(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for name, tensor in twin.named_parameters():
        if not name.endswith(".weight") or name in dict(model.named_parameters()):
            assert torch.equal(model.get_parameter(name), tensor)


def test_a_loaded_model_is_cast_there_and_back(loaded) -> None:
    expected = output(loaded)
    assert torch.equal(output(loaded.to(torch.float64).to(torch.float32)), expected)
    assert torch.equal(output(loaded.to("cpu")), expected)


def test_a_model_with_modules_in_fp32_is_cast_as_its_plain_twin(tmp_path) -> None:
    model, _ = built("WanTransformer3DModel")
    loaded = type(model).from_pretrained(packed(model, tmp_path), torch_dtype=torch.bfloat16)
    layers = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantizedLayer)}
    kept = {name for name, layer in layers.items() if layer.weight.dtype == torch.float32}
    assert kept and all("time_embedder" in name for name in kept)
    for dtype in (torch.float16, torch.float32):
        loaded.to(dtype)
        for name, layer in layers.items():
            (value,) = layer.quantized_weights()
            assert torch.equal(layer.weight, dequantize_weight(value).to(dtype)), name


def test_8_bit_activations_stay_after_a_cast() -> None:
    model = set_activation_bits(packed_here(unet()), 8, integer=False).half()
    assert torch.isfinite(output(model)).all() and output(model).dtype == torch.float16


def test_another_pipeline_is_made_of_the_same_model(loaded) -> None:
    expected = output(loaded)
    pipe = pipeline(loaded)
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe, requires_safety_checker=False)
    assert other.unet is loaded and torch.equal(output(other.unet), expected)
    half = StableDiffusionImg2ImgPipeline.from_pipe(pipe, torch_dtype=torch.float16, requires_safety_checker=False)
    assert half.unet.dtype == torch.float16 and torch.isfinite(output(half.unet)).all()


def ip_adapter(width: int, tokens: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """The state of a small IP-Adapter for the two cross attentions of :func:`unet`."""
    chance = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance) / 5

    image = {"proj.weight": draw(tokens * width, 16), "proj.bias": draw(tokens * width)}
    image |= {"norm.weight": draw(width), "norm.bias": draw(width)}
    names = ("1", "3", "5", "7", "9", "11", "13")
    layers = {f"{n}.{what}.weight": draw(32, width) for n in names for what in ("to_k_ip", "to_v_ip")}
    return {"image_proj": image, "ip_adapter": layers}


def with_image(model: nn.Module) -> torch.Tensor:
    given: dict[str, Any] = inputs(model)
    chance = torch.Generator().manual_seed(3)
    images = torch.randn(2, 1, 16, generator=chance).to(model.dtype)
    with torch.no_grad():
        return model(**given, added_cond_kwargs={"image_embeds": [images]}).sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_ip_adapter_is_loaded_and_unloaded(loaded, tmp_path, dtype: torch.dtype) -> None:
    loaded.to(dtype)
    twin, plain = plain_twin(loaded), output(loaded)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                              image_size=8, patch_size=4, projection_dim=16)  # fmt: skip
    made = []
    for model in (loaded, twin):
        pipe = pipeline(model)
        pipe.register_modules(image_encoder=CLIPVisionModelWithProjection(config))
        pipe.load_ip_adapter(ip_adapter(32), subfolder=None, weight_name=None, image_encoder_folder=None)
        pipe.set_ip_adapter_scale(0.8)
        made.append(with_image(model))
        if model is loaded:
            with pytest.raises(Qua2SeDiMoError, match="adapter attached"):
                model.save_pretrained(tmp_path / "out")
        pipe.unload_ip_adapter()
    assert torch.equal(*made) and not torch.equal(made[0], plain)
    assert torch.equal(output(loaded), plain)


def test_networks_built_from_a_packed_one_have_its_weights_or_are_refused(loaded) -> None:
    with pytest.raises(Qua2SeDiMoError, match="packed") as refused:
        ControlNetModel.from_unet(loaded)
    assert "dequantize(copy.deepcopy" in refused.value.remedy
    plain = plain_twin(loaded)
    control = ControlNetModel.from_unet(plain)
    assert torch.equal(control.conv_in.weight, loaded.conv_in.weight)
    with pytest.raises(Qua2SeDiMoError, match="packed"):
        UNetMotionModel.from_unet2d(loaded)


_HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "control, base, sizes",
    [
        ("FluxControlNetModel", "FluxTransformer2DModel", {"num_single_layers": 1, **_HEADS}),
        ("SD3ControlNetModel", "SD3Transformer2DModel", {}),
        ("QwenImageControlNetModel", "QwenImageTransformer2DModel", _HEADS),
    ],
)
def test_control_networks_of_transformers_are_refused_too(control: str, base: str, sizes: dict[str, int]) -> None:
    """diffusers copies weights into these with strict=False: what does not fit would silently stay random."""
    model = packed_here(built(base)[0])
    with pytest.raises(Qua2SeDiMoError, match="packed"):
        getattr(diffusers, control).from_transformer(model, num_layers=1, **sizes)


def test_projections_are_not_fused_and_nothing_is_left_behind(loaded) -> None:
    expected = output(loaded)
    for fuse in (loaded.fuse_qkv_projections, pipeline(loaded).fuse_qkv_projections):
        with pytest.raises(Qua2SeDiMoError, match="cannot be fused"):
            fuse()
    for attention in [m for m in loaded.modules() if hasattr(m, "fuse_projections")]:
        with pytest.raises(Qua2SeDiMoError, match="cannot be fused"):
            attention.fuse_projections()
    assert torch.equal(output(loaded), expected)
    assert not any(name.endswith(("to_qkv", "to_kv")) for name, _ in loaded.named_modules())
    twin = plain_twin(loaded)
    twin.fuse_qkv_projections()
    torch.testing.assert_close(output(twin), expected, rtol=1e-3, atol=1e-4)
    assert copy.deepcopy(loaded).fuse_qkv_projections.__self__ is not loaded
