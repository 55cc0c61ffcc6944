"""The operation type of a layer, from diffusers' naming conventions, the enclosing module, and the weight's shape.

The types: SA-Q, SA-K, SA-V, SA-Out (self-attention, including both streams of joint attention), CA-… (cross-attention),
…-QKV and …-KV (fused projections), FF 1 and FF 2 (feed-forward, up and down), AdaLN (any modulation), t-Embed
(timestep), c-Embed (text, class and other conditions), Patchify, Conv In, Conv Out, Out, Res In, Res Out, Res
Skip, Resample, Proj In, Proj Out (of an attention block), Skip (projection of a skip connection), Gate (of
attention), Depthwise (depthwise convolution). A layer that matches no rule is Conv or Linear inside a block, c-Embed
before the blocks.
"""

from __future__ import annotations

import re

from torch import nn

#: All operation types.
OPERATIONS = frozenset({
    *(f"{attention}-{role}" for attention in ("SA", "CA") for role in ("Q", "K", "V", "Out", "QKV", "KV")),
    "FF 1", "FF 2", "AdaLN", "t-Embed", "c-Embed", "Patchify", "Conv In", "Conv Out", "Out", "Res In", "Res Out",
    "Res Skip", "Resample", "Proj In", "Proj Out", "Skip", "Gate", "Depthwise", "Conv", "Linear",
})  # fmt: skip

#: Role of a projection by the last component of its name, without prefixes and suffixes (``add_q_proj`` → ``q``).
_PROJECTIONS = {
    "qkv": "QKV", "qkv_mlp": "QKV", "kv": "KV", "q": "Q", "k": "K", "v": "V", "query": "Q", "key": "K", "value": "V",
    "wq": "Q", "wk": "K", "wv": "V", "wo": "Out", "out": "Out", "o": "Out", "c": "Out", "": "Out", "add_out": "Out",
}  # fmt: skip
_CERTAIN = re.compile(r"^to_(q|k|v|qkv|kv|query|key|value|out|add_out)(_|$)|^add_[qkv]_proj$")
_CONTAINER = re.compile(r"(attn|attentions?|mha|pooler)\d*$")  # disambiguates names such as ``out_proj``
_FEED_FORWARD = re.compile(
    r"(^|\.)(\w*_)?(ff|ffn|mlp|feed_forward|transition\w*|DenseReluDense|experts)(_\w+)?(\.|$)"
    r"|\.(gate_proj|up_proj|down_proj|gate_up_proj|w[123])$"
)

#: Patterns on the lower-case dotted name; the first match wins. They describe roles, not particular models.
_OPERATIONS: tuple[tuple[str, str], ...] = (
    (r"(skip_linear|skip_proj\w*)$", "Skip"),
    (r"(conv_shortcut|shortcut_\w+|residual_conv|nin_shortcut)$", "Res Skip"),
    (r"(?<!time_)(text|txt|caption|guidance|resolution|aspect_ratio|pooled|class|label)_(emb\w*|proj\w*)\b", "c-Embed"),
    (r"(^|\.)(audio_)?(emb\.)?(t|time|timestep)_(\w+_)?emb(ed|edder|edding|eddings)?(_r)?\b", "t-Embed"),
    (r"(^|\.)(time_in|timestep_proj|time_emb_proj|to_timestep_embed|time_proj|mapper(_sca|_crp)?)\b", "t-Embed"),
    (r"(adaln|ada_norm|norm\w*\.linear|modulation|(^|[._])mod([._]|$)|film)", "AdaLN"),
    (r"(scale_(bias|output|shift)|_gate\.linear|time_mod_proj|time_projection|(^|\.)t_block|context_mlp)", "AdaLN"),
    (r"(caption|text|txt|context|label|class|clip|llm|cap|y|style|prompt|glyph|condition\w*|cond\w*|global\w*)"
     r"(_\w+)?_?(proj|projection|projector|embedder|embedding|embed|embeds|emb|in|mapper)\b(?!.*\.(ff|mlp|attn))",
     "c-Embed"),
    (r"(encoder_hid_proj|encoder_proj|embedding_proj|hidden_states_proj|add_embedding|addition_embed|image_embed|fps_emb)",
     "c-Embed"),
    (r"(pos_embed|patch\w*_?embed\w*|x_embed\w*|^(\w+_)?img_in|^patch_\w+|^input_proj|^audio_proj_in)", "Patchify"),
    (r"(^|\.)(conv_in|preprocess_conv|proj_in_conv)\b", "Conv In"),
    (r"^(conv_out|postprocess_conv|final_conv\w*)", "Conv Out"),
    (r"(resnet\w*|res_block\w*|temp_convs|conv_block\w*)\b.*\bconv_?(1|in)\b", "Res In"),
    (r"(resnet\w*|res_block\w*|temp_convs|conv_block\w*)\b.*\b(conv_?([2-9]|out))\b", "Res Out"),
    (r"(down|up)_?(sampl|scal)\w*", "Resample"),
    (r"(attentions|motion_modules|transformer_in|temporal_\w+)(\.\d+)?\.(\w+\.)*proj_in$", "Proj In"),
    (r"(attentions|motion_modules|transformer_in|temporal_\w+)(\.\d+)?\.(\w+\.)*proj_out$", "Proj Out"),
    (r"\.\d+\.proj_in$", "Proj In"),
    (r"\.\d+\.proj_out$", "Proj Out"),
    (r"(^|\.)proj_mlp$", "FF 1"),
    (r"^(\w+_)?proj_in\b", "Patchify"),
    (r"^((\w+_)?proj_out|final\w*|head|lm_head|clf|\w*_heads?|out\b|\w+_out\b|all_final_layer|proj_to_\w+|project_from)",
     "Out"),
)  # fmt: skip


def operation_type(name: str, denoiser: nn.Module) -> str:
    """The layer's type, one of :data:`OPERATIONS`; never raises."""
    module = _module(denoiser, name)
    if getattr(module, "groups", 1) > 1 and module.groups == module.in_channels:  # type: ignore[union-attr, operator]
        return "Depthwise"
    attention = _attention_projection(name, denoiser)
    if attention is not None:
        return attention
    lowered = name.lower()
    for pattern, operation in _OPERATIONS:
        if re.search(pattern, lowered):
            return operation
    if _FEED_FORWARD.search(name):
        return _feed_forward(name, denoiser)
    if _CONTAINER.search(_without_numbers(name.rpartition(".")[0])[2]):
        return "Gate" if re.search(r"(gate|_g|beta)\b", name) else "Proj In"
    return _by_place(name, module)


def _attention_projection(name: str, denoiser: nn.Module) -> str | None:
    head, _, last = _without_numbers(name)
    if not _CERTAIN.search(last) and not _CONTAINER.search(_without_numbers(head)[2]):
        return None
    bare, before = last, ""
    while bare != before:
        before, bare = bare, re.sub(r"^(to|img|txt|attn)(_|$)|(_|^)(t|cam|proj|linear|layer|attn)$", "", bare)
    role = _PROJECTIONS.get(re.sub(r"^add_(?=[qkv]$)", "", bare))
    if role is None:
        return None
    cross = getattr(_module(denoiser, head), "is_cross_attention", None)
    if cross is None:
        cross = re.search(r"(attn2|cross|enc_attn)\w*$", head) is not None
    return f"{'CA' if cross else 'SA'}-{role}"


def _feed_forward(name: str, denoiser: nn.Module) -> str:
    """FF 2 is the layer that reduces the width; of two square layers, the one with an output-like name."""
    weight = getattr(_module(denoiser, name), "weight", None)
    if weight is not None and weight.ndim > 1 and weight.shape[0] != weight.shape[1]:
        return "FF 1" if weight.shape[0] > weight.shape[1] else "FF 2"
    return "FF 2" if re.search(r"(2|out|down\w*|wo)(\.\d+)?$", name) else "FF 1"


def _by_place(name: str, module: nn.Module | None) -> str:
    if re.search(r"\.\d+\.", name):
        return "Conv" if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else "Linear"
    return "c-Embed"


def _without_numbers(name: str) -> tuple[str, str, str]:
    """Path and last name, without the index in a Sequential: ``attn.to_out.0`` → ``attn``, ``to_out``."""
    head, dot, last = name.rpartition(".")
    return head.rpartition(".") if last.isdigit() else (head, dot, last)


def _module(denoiser: nn.Module, name: str) -> nn.Module | None:
    try:
        return denoiser.get_submodule(name)
    except AttributeError:
        return None
