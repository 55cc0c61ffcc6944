"""Operation type and block of a layer, from diffusers' standard names and the structure around it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Place:
    """Where a layer stands: ``block`` is a readable name, ``index`` its position among its like, if any."""

    block: str
    index: int | None
    stage: str


#: Patterns on the dotted name, first match wins. Written for roles, not for particular models.
_OPERATIONS: tuple[tuple[str, str], ...] = (
    (
        r"(^|\.)(time_?(step)?_?(emb|embed|embedding|embedder)|time_text_embed|time_proj|time_emb_proj)(\.|$)",
        "t-Embed",
    ),
    (
        r"(caption|text|context|label|class|image)_?(proj|projection|embedder|embedding|embed|embeds)",
        "c-Embed",
    ),
    (r"(encoder_hid_proj|add_embedding|addition_embed)", "c-Embed"),
    (r"(adaln|ada_norm|norm\d*(_context)?\.linear|norm_out\.linear)", "AdaLN"),
    (r"(pos_embed|patch_embed|x_embedder)", "Patchify"),
    (r"(^|\.)conv_in$", "Conv In"),
    (r"(^|\.)conv_out$", "Conv Out"),
    (r"resnets\.\d+\.conv1$", "Res In"),
    (r"resnets\.\d+\.conv2$", "Res Out"),
    (r"conv_shortcut$", "Res Skip"),
    (r"(down|up)samplers\.", "Resample"),
    (r"(ff|ff_context|mlp)\.(net\.0(\.proj)?|fc1|linear_1)$|proj_mlp$", "FF 1"),
    (r"(ff|ff_context|mlp)\.(net\.2|fc2|linear_2)$", "FF 2"),
    (r"(attentions|motion_modules)\.\d+\.proj_in$", "Proj In"),
    (r"(attentions|motion_modules)\.\d+\.proj_out$", "Proj Out"),
    (r"^proj_in$", "Patchify"),
    (r"^(proj_out|proj_out_\d|final_layer)", "Out"),
)

_PROJECTIONS = {
    "to_q": "Q", "to_k": "K", "to_v": "V", "to_out": "Out", "to_qkv": "QKV", "to_kv": "KV",
    "add_q_proj": "Q", "add_k_proj": "K", "add_v_proj": "V", "to_add_out": "Out",
}  # fmt: skip


def operation_type(name: str, denoiser: nn.Module) -> str:
    """SA-Q, CA-K, FF 1, AdaLN, t-Embed, …; what no rule knows is called by its own last name."""
    attention = _attention_projection(name, denoiser)
    if attention is not None:
        return attention
    for pattern, operation in _OPERATIONS:
        if re.search(pattern, name):
            return operation
    words = [word for word in name.split(".") if not word.isdigit()]
    return words[-1] if words else name


def _attention_projection(name: str, denoiser: nn.Module) -> str | None:
    head, _, last = name.rpartition(".")
    if last.isdigit():  # to_out is a Sequential: to_out.0
        head, _, last = head.rpartition(".")
    role = _PROJECTIONS.get(last)
    if role is None:
        return None
    attention = denoiser.get_submodule(head) if head else denoiser
    cross = getattr(attention, "is_cross_attention", None)
    if cross is None:
        cross = head.endswith(("attn2", "cross_attn"))
    return f"{'CA' if cross else 'SA'}-{role}"


def block_of(name: str) -> Place:
    """The repeated block a layer belongs to, by the numbered module lists on its path.

    ``transformer_blocks.3.attn1.to_q`` is in *block 3*; ``down_blocks.1.attentions.0.…`` in *down 1 attention 0*
    of stage *down 1*; a layer outside every list is in *input* or *output* by its name.
    """
    parts = name.split(".")
    numbered = [
        (parts[i], int(parts[i + 1])) for i in range(len(parts) - 1) if parts[i + 1].isdigit() and "block" in parts[i]
    ]
    if not numbered and not parts[0].startswith("mid"):
        stage = "output" if re.match(r"(proj_out|norm_out|conv_out|final)", name) else "input"
        return Place(stage, None, stage)
    match = re.match(r"(down|up)_blocks\.(\d+)|(mid)_block", name)
    if match:
        stage = f"{match[1]} {match[2]}" if match[1] else "mid"
        inner = re.search(r"(resnet|attention|motion_module|downsampler|upsampler)s\.(\d+)", name)
        return Place(f"{stage} {inner[1]} {inner[2]}" if inner else stage, None, stage)
    list_name, index = numbered[0]
    stage = list_name.replace("_blocks", "").replace("blocks", "").strip("_") or "block"
    label = "block" if stage in ("transformer", "block") else f"{stage} block"
    return Place(f"{label} {index}", index, stage)
