"""Which layers there are, what they are called, and which denoisers are refused."""

from __future__ import annotations

import pytest
import torch
from tests.conftest import small_dit, small_pipeline, small_pixart, small_settings, small_unet
from torch import nn

from qua2sedimo import Study
from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import weight_layers, weight_of
from qua2sedimo.denoisers.blocks import block_of
from qua2sedimo.denoisers.names import operation_type
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Option, SearchSpace
from qua2sedimo.runtime import quantized_module, replace_layers

PIXART = {
    "pos_embed.proj": ("Patchify", "input"),
    "adaln_single.emb.timestep_embedder.linear_1": ("t-Embed", "input"),
    "adaln_single.linear": ("AdaLN", "input"),
    "caption_projection.linear_2": ("c-Embed", "input"),
    "transformer_blocks.0.attn1.to_q": ("SA-Q", "block 0"),
    "transformer_blocks.1.attn1.to_out.0": ("SA-Out", "block 1"),
    "transformer_blocks.1.attn2.to_k": ("CA-K", "block 1"),
    "transformer_blocks.0.attn2.to_v": ("CA-V", "block 0"),
    "transformer_blocks.0.ff.net.0.proj": ("FF 1", "block 0"),
    "transformer_blocks.0.ff.net.2": ("FF 2", "block 0"),
    "proj_out": ("Out", "output"),
}
DIT = {
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": ("t-Embed", "block 0"),
    "transformer_blocks.1.norm1.linear": ("AdaLN", "block 1"),
    "transformer_blocks.1.attn1.to_v": ("SA-V", "block 1"),
    "proj_out_2": ("Out", "output"),
}
UNET = {
    "conv_in": ("Conv In", "input"),
    "conv_out": ("Conv Out", "output"),
    "time_embedding.linear_1": ("t-Embed", "input"),
    "down_blocks.0.resnets.0.conv1": ("Res In", "down 0 resnet 0"),
    "down_blocks.0.resnets.0.conv2": ("Res Out", "down 0 resnet 0"),
    "down_blocks.0.resnets.0.time_emb_proj": ("t-Embed", "down 0 resnet 0"),
    "up_blocks.1.resnets.1.conv_shortcut": ("Res Skip", "up 1 resnet 1"),
    "down_blocks.0.downsamplers.0.conv": ("Resample", "down 0 downsampler 0"),
    "mid_block.resnets.0.conv1": ("Res In", "mid resnet 0"),
    "mid_block.attentions.0.proj_in": ("Proj In", "mid attention 0"),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q": ("CA-Q", "down 1 attention 0"),
}


@pytest.mark.parametrize(("make", "expected"), [(small_pixart, PIXART), (small_dit, DIT), (small_unet, UNET)])
def test_layers_have_the_operation_and_block_of_their_role(make, expected) -> None:  # type: ignore[no-untyped-def]
    layers = weight_layers(make())
    assert {name: (layers[name].operation, layers[name].block) for name in expected} == expected


def test_blocks_of_a_transformer_are_numbered_for_plots() -> None:
    layers = weight_layers(small_pixart())
    assert layers["transformer_blocks.1.ff.net.2"].block_index == 1
    assert layers["proj_out"].block_index is None


def test_every_operation_of_the_small_denoisers_is_known_by_a_rule(denoiser: nn.Module) -> None:
    known = {"t-Embed", "c-Embed", "AdaLN", "Patchify", "Conv In", "Conv Out", "Res In", "Res Out", "Res Skip"}
    known |= {"Resample", "FF 1", "FF 2", "Proj In", "Proj Out", "Out"}
    known |= {f"{attention}-{role}" for attention in ("SA", "CA") for role in ("Q", "K", "V", "Out")}
    assert {layer.operation for layer in weight_layers(denoiser).values()} <= known


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("transformer_blocks.0.attn.add_q_proj", "SA-Q"),
        ("double_stream_blocks.0.block.attn1.to_out_t", "SA-Out"),
        ("single_transformer_blocks.3.proj_mlp", "FF 1"),
        ("single_transformer_blocks.3.proj_out", "Proj Out"),
        ("time_text_embed.timestep_embedder.linear_1", "t-Embed"),
        ("time_text_embed.text_embedder.linear_1", "c-Embed"),
        ("time_text_embed.guidance_embedder.linear_1", "c-Embed"),
        ("transformer_blocks.0.norm1_context.linear", "AdaLN"),
        ("blocks.0.cross_attn.kv_linear", "CA-KV"),
        ("blocks.0.attn.img_attn_qkv", "SA-QKV"),
        ("down_blocks.0.temp_convs.0.conv4.3", "Res Out"),
        ("adaln_single.emb.timestep_embedder.linear_1", "t-Embed"),
        ("adaln_single.linear", "AdaLN"),
        ("context_embedder", "c-Embed"),
    ],
)
def test_names_of_joint_attention_and_video_models_are_read_by_role(name: str, operation: str) -> None:
    assert operation_type(name, nn.Module()) == operation


def test_widths_tell_which_of_two_feed_forward_layers_leads_back() -> None:
    model = nn.ModuleDict({"feed_forward": nn.ModuleDict({"b": nn.Linear(8, 32), "a": nn.Linear(32, 8)})})
    assert operation_type("feed_forward.b", model) == "FF 1"
    assert operation_type("feed_forward.a", model) == "FF 2"


def test_a_layer_that_no_rule_knows_is_named_by_its_place() -> None:
    assert operation_type("strange.gadget.3", nn.Module()) == "c-Embed"
    model = nn.ModuleDict({"things": nn.ModuleList([nn.ModuleDict({"odd": nn.Linear(2, 2), "k": nn.Conv1d(2, 2, 1)})])})
    assert operation_type("things.0.odd", model) == "Linear"
    assert operation_type("things.0.k", model) == "Conv"


def test_blocks_are_found_by_lists_of_layers_and_by_diffusers_hints() -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(2, 2)

    model = nn.Module()
    model.refiners, model.parts = (
        nn.ModuleList([Unit(), Unit()]),
        nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))]),
    )
    assert block_of("refiners.1.only", model).block == "input"
    model._repeated_blocks = ["Unit"]
    assert (block_of("refiners.1.only", model).block, block_of("refiners.1.only", model).index) == (
        "refiners block 1",
        1,
    )
    assert block_of("parts.0.1", model).block == "parts block 0"  # it holds several layers
    assert block_of("layers.4.mlp.up_proj", model).block == "block 4"


def test_video_and_joint_blocks_keep_apart_by_their_list() -> None:
    assert block_of("single_transformer_blocks.4.proj_mlp").block == "single_transformer block 4"
    assert block_of("transformer_blocks.4.ff.net.2").block == "block 4"


def test_layers_know_shape_weights_and_module_kind() -> None:
    model = small_unet()
    for name, layer in weight_layers(model).items():
        module = model.get_submodule(name)
        assert layer.shape == tuple(weight_of(module).shape)
        assert layer.weights == module.weight.numel()
        assert layer.kind == type(module).__name__


def test_layers_wrapped_by_adapters_are_refused() -> None:
    model = small_dit()

    class Wrapped(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base_layer = base

    model.transformer_blocks[0].attn1.to_q = Wrapped(model.transformer_blocks[0].attn1.to_q)
    with pytest.raises(Qua2SeDiMoError, match=r"transformer_blocks\.0\.attn1\.to_q.*LoRA") as caught:
        weight_layers(model)
    assert "fuse_lora" in str(caught.value.remedy)


def test_a_denoiser_without_weights_can_be_traced_but_not_studied(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pipeline = small_pipeline()
    pipeline.transformer.to("meta")
    assert weight_layers(pipeline.transformer)
    with pytest.raises(Qua2SeDiMoError, match="DiTTransformer2DModel has no weights") as caught:
        Study.create(tmp_path / "s", small_settings(), pipeline).workspace.graph  # noqa: B018
    assert "inspect" in str(caught.value.remedy)


def test_a_denoiser_loaded_quantized_is_refused() -> None:
    model = small_dit()
    model.hf_quantizer = object()
    with pytest.raises(Qua2SeDiMoError, match="DiTTransformer2DModel is already quantized"):
        weight_layers(model)


@pytest.mark.parametrize("every", [True, False])
def test_a_denoiser_with_layers_quantized_in_memory_is_refused(tmp_path, every: bool) -> None:  # type: ignore[no-untyped-def]
    model = small_dit()
    modules = {n: model.get_submodule(n) for n in weight_layers(model)}
    chosen = modules if every else dict(list(modules.items())[:2])
    option = Option("uaq", 4)
    space = SearchSpace.of({n: tuple(m.weight.shape) for n, m in chosen.items()}, str(option))
    bank = Bank.build(tmp_path / "bank", space, "x", lambda n: weight_of(modules[n]).half())
    replace_layers(model, {n: quantized_module(m, bank.get(n, option)) for n, m in chosen.items()})
    with pytest.raises(Qua2SeDiMoError, match="already quantized"):
        weight_layers(model)


@pytest.mark.filterwarnings("ignore")
def test_a_denoiser_with_dynamically_quantized_layers_is_refused() -> None:
    """They are no Linear layers: without this they would be left alone, and only the rest quantized."""
    quantized = torch.ao.quantization.quantize_dynamic(small_dit(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(Qua2SeDiMoError, match=r"already quantized: .transformer_blocks\.0\..* of torch\.ao"):
        weight_layers(quantized)
