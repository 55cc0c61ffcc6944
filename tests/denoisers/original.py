"""Checkpoints in one file with their authors' names, as they were published: the inverse of what diffusers converts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qua2sedimo.interchange.gguf.names import named

Tensors = dict[str, torch.Tensor]
_PREFIX = "model.diffusion_model."


def stable_diffusion(pipeline: Any) -> Tensors:
    """Stable Diffusion 1: U-Net, autoencoder and text encoder."""
    text = {f"cond_stage_model.transformer.{_wrapped(n)}": t for n, t in pipeline.text_encoder.state_dict().items()}
    return {**by_table(pipeline.unet), **autoencoder(pipeline.vae), **text}


def stable_diffusion_xl(pipeline: Any) -> Tensors:
    """Stable Diffusion XL, whose second text encoder has the names of OpenCLIP."""
    first = {f"conditioner.embedders.0.transformer.{_wrapped(n)}": t for n, t in _state(pipeline.text_encoder)}
    second = open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return {**by_table(pipeline.unet), **autoencoder(pipeline.vae), **first, **second}


def stable_diffusion_3(pipeline: Any) -> Tensors:
    """Stable Diffusion 3: transformer, autoencoder, and three text encoders."""
    texts = {"clip_l": pipeline.text_encoder, "clip_g": pipeline.text_encoder_2, "t5xxl": pipeline.text_encoder_3}
    states = {f"text_encoders.{name}.transformer.{n}": t for name, model in texts.items() for n, t in _state(model)}
    return {**sd3_transformer(pipeline.transformer), **autoencoder(pipeline.vae), **states}


def _state(model: nn.Module) -> Sequence[tuple[str, torch.Tensor]]:
    return list(model.state_dict().items())


def _wrapped(name: str) -> str:
    """Transformers' text model without a projection has lost the prefix that checkpoints have."""
    return name if name.startswith("text_") else f"text_model.{name}"


def by_table(denoiser: nn.Module) -> Tensors:
    """U-Nets and Flux by the tables that GGUF files are written with."""
    state = denoiser.state_dict()
    found = {}
    for one in named(denoiser, "original", list(state)):
        tensor = torch.cat([state[part] for part in one.parts])
        if one.swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        found[one.name] = tensor
    return found


def renamed(state: Mapping[str, torch.Tensor], rules: Sequence[tuple[str, str]], prefix: str = "") -> Tensors:
    """Tensors under the names that these replacements give, in order; each a regular expression."""
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[prefix + name] = tensor
    return found


def autoencoder(vae: nn.Module) -> Tensors:
    """AutoencoderKL, whose attention was made of convolutions."""
    last = len(vae.config["up_block_types"]) - 1  # type: ignore[index]
    rules = [
        (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0", "mid.attn_1"), ("group_norm", "norm"), (r"to_out\.0", "proj_out"),
        (r"\.to_([qkv])\.", r".\1."), ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
        (r"up_blocks\.(\d+)\.resnets", r"UP.\1.block"), (r"up_blocks\.(\d+)\.upsamplers\.0", r"UP.\1.upsample"),
    ]  # fmt: skip
    found = {}
    for name, tensor in renamed(vae.state_dict(), rules).items():
        name = re.sub(r"UP\.(\d+)", lambda match: f"up.{last - int(match[1])}", name)
        matrix = ".attn_1." in name and tensor.ndim == 2
        found[f"first_stage_model.{name}"] = tensor[:, :, None, None] if matrix else tensor
    return found


def open_clip(encoder: nn.Module, prefix: str) -> Tensors:
    """CLIP by OpenCLIP's names: queries, keys and values are one tensor, and the projection is transposed."""
    rules = [
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.token_embedding", "token_embedding"), ("text_model.final_layer_norm", "ln_final"),
        (r"text_model.encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), (r"\.fc1\.", ".c_fc."),
        (r"\.fc2\.", ".c_proj."), ("self_attn", "attn"),
    ]  # fmt: skip
    state = renamed(encoder.state_dict(), rules)
    projection = state.pop("text_projection.weight")
    found = {f"{prefix}{name}": tensor for name, tensor in state.items() if "_proj." not in name or "c_proj" in name}
    found |= {f"{prefix}{name}": tensor for name, tensor in state.items() if "attn.out_proj" in name}
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state[name.replace(".q_proj.", f".{one}_proj.")] for one in "qkv"]
        found[prefix + name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return {**found, f"{prefix}text_projection": projection.T}


def sd3_transformer(denoiser: nn.Module) -> Tensors:
    """Stable Diffusion 3's transformer: fused projections, and scale and shift of the last norms in another order."""
    last = denoiser.config["num_layers"] - 1  # type: ignore[index]
    rules = [
        (r"pos_embed\.pos_embed", "pos_embed"), (r"pos_embed\.proj", "x_embedder.proj"),
        (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
        (r"time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
        (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
        (r"norm1\.linear", "x_block.adaLN_modulation.1"),
        (r"attn\.to_add_out", "context_block.attn.proj"), (r"(attn2?)\.to_out\.0", r"x_block.\1.proj"),
        (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"), (r"ff_context\.net\.2", "context_block.mlp.fc2"),
        (r"ff\.net\.0\.proj", "x_block.mlp.fc1"), (r"ff\.net\.2", "x_block.mlp.fc2"),
        (r"attn\.norm_added_([qk])", r"context_block.attn.ln_\1"), (r"(attn2?)\.norm_([qk])", r"x_block.\1.ln_\2"),
        (r"attn\.add_q_proj", "context_block.attn.q"), (r"attn\.add_k_proj", "context_block.attn.k"),
        (r"attn\.add_v_proj", "context_block.attn.v"), (r"(attn2?)\.to_([qkv])\.", r"x_block.\1.\2."),
        (r"^proj_out", "final_layer.linear"), (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^transformer_blocks", "joint_blocks"),
    ]  # fmt: skip
    state = renamed(denoiser.state_dict(), rules)
    found = {}
    for name, tensor in state.items():
        if re.search(r"attn2?\.[kv]\.", name):
            continue
        if re.search(r"attn2?\.q\.", name):
            parts = [state[re.sub(r"\.q\.", f".{one}.", name)] for one in "qkv"]
            name, tensor = re.sub(r"\.q\.", ".qkv.", name), torch.cat(parts)
        if name.startswith(("final_layer.ada", f"joint_blocks.{last}.context_block.ada")):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        found[_PREFIX + name] = tensor
    return found


_LTX = [(r"^proj_in", "patchify_proj"), ("time_embed", "adaln_single"), (r"norm_([qk])", r"\1_norm")]


def ltx(pipeline: Any) -> Tensors:
    """LTX-Video's transformer alone."""
    return renamed(pipeline.transformer.state_dict(), _LTX, _PREFIX)


def flux(pipeline: Any) -> Tensors:
    """Flux's transformer alone, as its authors and ComfyUI store it."""
    return by_table(pipeline.transformer)


def as_it_is(pipeline: Any) -> Tensors:
    """Transformers whose authors use diffusers' own names."""
    return dict(pipeline.transformer.state_dict())


#: Pipeline class → its checkpoint in one file.
FILES: Mapping[str, Callable[[Any], Tensors]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "LTXPipeline": ltx,
    "QwenImagePipeline": as_it_is,
}
