"""The names that a model's authors gave its tensors, which ComfyUI and stable-diffusion.cpp expect.

A tensor of the authors' checkpoint is one of diffusers' or several below each other. These tables invert what diffusers
does when it loads such a checkpoint (``diffusers.loaders.single_file_utils``), which tests compare them with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError

#: Whose names the tensors get.
Names = Literal["diffusers", "original"]


@dataclass(frozen=True)
class Named:
    """A tensor to write: ``parts`` are diffusers' tensors, one below the other. ``swapped``: the upper and the lower
    half of its rows change places."""

    name: str
    parts: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True)
class _Rule:
    """Modules of diffusers after ``prefix``, a regular expression, that the authors' module ``name`` holds, in order;
    ``suffix``: in place of ``.weight``."""

    prefix: str
    modules: tuple[str, ...]
    name: str
    swapped: bool = False
    suffix: str | None = None


def _each(prefix: str, modules: Mapping[str, str], name: str = "", suffix: str | None = None) -> list[_Rule]:
    return [_Rule(prefix, (ours,), name + theirs, suffix=suffix) for ours, theirs in modules.items()]


_OURS, _ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_BLOCK, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."

_FLUX = [
    *_each(
        "",
        {
            "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
            "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
            "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
            "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
            "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
            "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
            "context_embedder": "txt_in", "x_embedder": "img_in", "proj_out": "final_layer.linear",
        },
    ),
    _Rule("", ("norm_out.linear",), "final_layer.adaLN_modulation.1", swapped=True),
    _Rule(_BLOCK, _OURS, r"double_blocks.\1.img_attn.qkv"),
    _Rule(_BLOCK, _ADDED, r"double_blocks.\1.txt_attn.qkv"),
    *_each(
        _BLOCK,
        {
            "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
            "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
        },
        r"double_blocks.\1.",
    ),
    *_each(
        _BLOCK,
        {
            "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
            "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
        },
        r"double_blocks.\1.",
        ".scale",
    ),
    _Rule(_SINGLE, (*_OURS, "proj_mlp"), r"single_blocks.\1.linear1"),
    *_each(_SINGLE, {"norm.linear": "modulation.lin", "proj_out": "linear2"}, r"single_blocks.\1."),
    *_each(
        _SINGLE, {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}, r"single_blocks.\1.", ".scale"
    ),
]  # fmt: skip

_JOINT = [
    *_each(
        "",
        {
            "pos_embed.proj": "x_embedder.proj", "pos_embed": "", "context_embedder": "context_embedder",
            "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
            "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "proj_out": "final_layer.linear",
        },
    ),
    _Rule("", ("norm_out.linear",), "final_layer.adaLN_modulation.1", swapped=True),
    _Rule(_BLOCK, _OURS, r"joint_blocks.\1.x_block.attn.qkv"),
    _Rule(_BLOCK, _ADDED, r"joint_blocks.\1.context_block.attn.qkv"),
    _Rule(_BLOCK, ("attn2.to_q", "attn2.to_k", "attn2.to_v"), r"joint_blocks.\1.x_block.attn2.qkv"),
    *_each(
        _BLOCK,
        {
            "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
            "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
            "attn.to_out.0": "x_block.attn.proj", "attn.norm_added_q": "context_block.attn.ln_q",
            "attn.norm_added_k": "context_block.attn.ln_k", "attn.to_add_out": "context_block.attn.proj",
            "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
            "attn2.to_out.0": "x_block.attn2.proj", "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
        },
        r"joint_blocks.\1.",
    ),
]  # fmt: skip

_PIXART = [
    *_each(
        "",
        {
            "pos_embed.proj": "x_embedder.proj", "adaln_single.linear": "t_block.1", "proj_out": "final_layer.linear",
            "": "final_layer", "caption_projection.linear_1": "y_embedder.y_proj.fc1",
            "caption_projection.linear_2": "y_embedder.y_proj.fc2",
            "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
            "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
            "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
            "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
        },
    ),
    _Rule(r"transformer_blocks\.(\d+)", ("",), r"blocks.\1"),
    _Rule(_BLOCK, ("attn1.to_q", "attn1.to_k", "attn1.to_v"), r"blocks.\1.attn.qkv"),
    _Rule(_BLOCK, ("attn2.to_k", "attn2.to_v"), r"blocks.\1.cross_attn.kv_linear"),
    *_each(
        _BLOCK,
        {
            "attn1.to_out.0": "attn.proj", "attn2.to_q": "cross_attn.q_linear", "attn2.to_out.0": "cross_attn.proj",
            "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2",
        },
        r"blocks.\1.",
    ),
]  # fmt: skip

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_UNET_PREFIX = "model.diffusion_model."  # by which diffusers finds the U-Net in a checkpoint; other readers drop it


def named(denoiser: nn.Module, names: Names, tensors: Iterable[str]) -> list[Named]:
    """The tensors to write, for these tensors of a denoiser (``MODULE.weight`` …).

    Raises :class:`Qua2SeDiMoError` if the authors' names of this class, or of one of its tensors, are not known.
    """
    tensors = list(tensors)
    if names == "diffusers":
        return [Named(name, (name,)) for name in tensors]
    kind = type(denoiser).__name__
    naming = _NAMINGS.get(kind)
    if naming is None:
        raise Qua2SeDiMoError(
            f"the original names of {kind} are not known; known are those of {', '.join(_NAMINGS)}",
            "Write it with diffusers' names: --format gguf.",
        )
    found = [naming(name, denoiser) for name in tensors]
    unknown = [name for name, one in zip(tensors, found) if one is None]
    if unknown:
        raise Qua2SeDiMoError(
            f"{kind}: the original name of {len(unknown)} tensors is not known, such as '{unknown[0]}'",
            "Write it with diffusers' names: --format gguf.",
        )
    return list(dict.fromkeys(one for one in found if one is not None))


def merged(denoiser: nn.Module, names: Names) -> list[tuple[str, ...]]:
    """The layers, by module, that these names put into one tensor, and so need one type."""
    if names == "diffusers":
        return []
    weights = [name for name, _ in denoiser.named_parameters() if name.endswith(".weight")]
    every = named(denoiser, names, weights)
    return [tuple(part.removesuffix(".weight") for part in one.parts) for one in every if len(one.parts) > 1]


def _by_rules(rules: Iterable[_Rule]) -> Callable[[str, nn.Module], Named | None]:
    places = [(re.compile(rule.prefix + re.escape(module)), module, rule) for rule in rules for module in rule.modules]

    def naming(tensor: str, denoiser: nn.Module) -> Named | None:
        module, _, last = tensor.rpartition(".")
        for pattern, own, rule in places:
            match = pattern.fullmatch(module)
            if match is not None:
                start = module.removesuffix(own)
                suffix = rule.suffix if rule.suffix and last == "weight" else f".{last}"
                parts = tuple(f"{start}{other}.{last}".removeprefix(".") for other in rule.modules)
                return Named((match.expand(rule.name) + suffix).removeprefix("."), parts, rule.swapped)
        return None

    return naming


_by_joint_rules, _LAST = _by_rules(_JOINT), "transformer_blocks.{}.norm1_context."


def _of_joint(tensor: str, denoiser: nn.Module) -> Named | None:
    """A tensor of Stable Diffusion 3, whose last block normalizes the text as the output layer its input."""
    found = _by_joint_rules(tensor, denoiser)
    last = denoiser.config["num_layers"] - 1  # type: ignore[index]
    return replace(found, swapped=True) if found and tensor.startswith(_LAST.format(last)) else found


def _of_unet(tensor: str, denoiser: nn.Module) -> Named | None:
    """A tensor of Stable Diffusion's U-Nets, whose blocks the authors number throughout."""
    module, _, last = tensor.rpartition(".")
    theirs = _UNET.get(module) or _in_unet_block(module, denoiser.config)  # type: ignore[arg-type]
    return None if theirs is None else Named(f"{_UNET_PREFIX}{theirs}.{last}", (tensor,))


def _in_unet_block(module: str, config: Any) -> str | None:
    found = re.fullmatch(
        r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", module
    )
    if found is None or not isinstance(config["layers_per_block"], int):
        return None
    side, block, inner, number, rest = found[1] or found[3], int(found[2] or 0), found[4], int(found[5]), found[6]
    resnet = _RESNET.get(rest)
    if inner == "resnets" and resnet is None:
        return None
    if side == "mid":
        return f"middle_block.{2 * number}.{resnet}" if inner == "resnets" else f"middle_block.{2 * number + 1}.{rest}"
    per = config["layers_per_block"] + 1
    if side == "down":
        at = 1 + block * per + number
        if inner == "downsamplers":
            return f"input_blocks.{(block + 1) * per}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{at}.0.{resnet}" if inner == "resnets" else f"input_blocks.{at}.1.{rest}"
    at = block * per + number
    if inner == "upsamplers":
        place = 2 if "Attn" in config["up_block_types"][block] else 1
        return f"output_blocks.{(block + 1) * per - 1}.{place}.{rest}"
    return f"output_blocks.{at}.0.{resnet}" if inner == "resnets" else f"output_blocks.{at}.1.{rest}"


_NAMINGS: Mapping[str, Callable[[str, nn.Module], Named | None]] = {
    "FluxTransformer2DModel": _by_rules(_FLUX),
    "SD3Transformer2DModel": _of_joint,
    "PixArtTransformer2DModel": _by_rules(_PIXART),
    "UNet2DConditionModel": _of_unet,
}

#: Class → what readers call its architecture. Others get the name of their class.
_ARCHITECTURES = {
    "FluxTransformer2DModel": "flux", "SD3Transformer2DModel": "sd3", "AuraFlowTransformer2DModel": "aura",
    "HiDreamImageTransformer2DModel": "hidream", "CosmosTransformer3DModel": "cosmos",
    "LTXVideoTransformer3DModel": "ltxv", "HunyuanVideoTransformer3DModel": "hyvid", "WanTransformer3DModel": "wan",
    "WanVACETransformer3DModel": "wan", "Lumina2Transformer2DModel": "lumina2",
    "QwenImageTransformer2DModel": "qwen_image", "PixArtTransformer2DModel": "pixart",
}  # fmt: skip


def architecture_of(denoiser: nn.Module) -> str:
    """``general.architecture``, by which readers choose the model's class."""
    kind = type(denoiser).__name__
    if kind == "UNet2DConditionModel":
        return "sdxl" if denoiser.config["addition_embed_type"] == "text_time" else "sd1"  # type: ignore[index]
    return _ARCHITECTURES.get(kind, kind.lower())
