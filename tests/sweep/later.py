"""Tiny instances of pipelines of later years: films with sound, films in pieces, and others with large encoders."""

from __future__ import annotations

from typing import Any

from tests.sweep.build import Tiny, tiny
from tests.sweep.texts import WIDTH

_SMALL = {"num_inference_steps": 2, "height": 16, "width": 16}
_GUIDED = {**_SMALL, "guidance_scale": 3.0}
_CLIP = {"num_frames": 5, "max_sequence_length": 32}
_TAPPED = 13  # layers of a text encoder of 36 that Ideogram 4 reads
_FEATURES = {"llm_features_dim": _TAPPED * WIDTH}

_CONNECTED = 16
_CONNECTOR = {
    "num_attention_heads": 2, "attention_head_dim": _CONNECTED // 2, "num_layers": 1, "num_learnable_registers": None,
}  # fmt: skip
_LTX2: dict[str, Any] = {
    "width": _CONNECTED,
    "connectors": {
        "caption_channels": _CONNECTED, "text_proj_in_factor": 3, "rope_double_precision": False,
        **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in _CONNECTOR.items()},
    },
    "vocoder": {
        "in_channels": 16, "hidden_channels": 8, "upsample_kernel_sizes": [4], "upsample_factors": [2],
        "resnet_kernel_sizes": [3], "resnet_dilations": [[1]],
    },
}  # fmt: skip
_LTX2_DENOISER = {"caption_channels": _CONNECTED, "perturbed_attn": True}
#: Guided by passes without prompt, without the attention of a block, and without the sound.
_LTX2_CALL = {
    **_SMALL, "height": 32, "width": 32, "num_frames": 3, "max_sequence_length": 32,
    "spatio_temporal_guidance_blocks": [1],
}  # fmt: skip
_PIECES = {**_CLIP, "guidance_scale": 3.0, "history_sizes": [4, 2, 1], "num_latent_frames_per_chunk": 2}

LATER: dict[str, Tiny] = {
    "Flux2Pipeline": tiny(
        {**_GUIDED, "text_encoder_out_layers": [1, 2]},
        parts={"tokenizer": "Qwen2Tokenizer"},
        transformer={"joint_attention_dim": 2 * WIDTH},
    ),
    "ZImageOmniPipeline": tiny(
        _GUIDED,
        parts={"text_encoder": "Qwen3Model", "tokenizer": "Qwen2Tokenizer"},
        transformer={"axes_lens": [1024, 64, 64], "siglip_feat_dim": WIDTH},
    ),
    "Ideogram4Pipeline": tiny(
        {**_GUIDED, "guidance_schedule": None, "max_sequence_length": 64},
        parts={"text_encoder": "Qwen3VLModel", "tokenizer": "Qwen2Tokenizer"},
        text_encoder={"layers": 36},
        transformer=_FEATURES,
        unconditional_transformer=_FEATURES,
    ),
    "LTX2Pipeline": tiny(_LTX2_CALL, transformer=_LTX2_DENOISER, **_LTX2),
    "LTX2ConditionPipeline": tiny(_LTX2_CALL, transformer=_LTX2_DENOISER, **_LTX2),
    "LTX2DFRPipeline": tiny(
        {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 32, "sigmas": [1.0, 0.5]},
        transformer={**_LTX2_DENOISER, "use_keyframes_abs_pos_embedding": True},
        **_LTX2,
    ),
    "HeliosPipeline": tiny(
        {**_SMALL, **_PIECES}, scheduler={"stages": 1, "stage_range": [0, 1], "use_dynamic_shifting": True}
    ),
    "HeliosPyramidPipeline": tiny(
        {**_PIECES, "height": 64, "width": 64, "pyramid_num_inference_steps_list": [1, 1, 1]},
        scheduler={"gamma": 0.25},  # the covariance of the default is singular in 32 bits on a CPU
    ),
    "MotifVideoPipeline": tiny(
        {**_SMALL, **_CLIP},
        parts={
            "tokenizer": "GemmaTokenizer",
            "guider": "ClassifierFreeGuidance",
            "scheduler": "FlowMatchEulerDiscreteScheduler",
        },
        transformer={"in_channels": 9},
    ),
    "Cosmos3OmniPipeline": tiny(
        {**_GUIDED, "num_frames": 5},
        parts={"text_tokenizer": "Qwen2Tokenizer"},
        more={"enable_safety_checker": False},
        transformer={"vocab_size": 512, "sound_gen": False},
    ),
    "AnyFlowFARPipeline": tiny({**_GUIDED, **_CLIP}, transformer={"full_chunk_limit": 2}),
}
