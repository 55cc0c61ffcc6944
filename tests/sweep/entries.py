"""The tiny instance of each pipeline class."""

from __future__ import annotations

from typing import Any

from diffusers import MotionAdapter
from tests.sweep.build import Tiny, tiny
from tests.sweep.earlier import EARLIER
from tests.sweep.later import LATER

_SMALL = {"num_inference_steps": 2, "height": 16, "width": 16}
_GUIDED = {**_SMALL, "guidance_scale": 3.0}
_STABLE = {"addition_embed_type": None, "addition_time_embed_dim": None, "projection_class_embeddings_input_dim": None}
XL = {"projection_class_embeddings_input_dim": 12 + 6 * 4, "cross_attention_dim": 24}
_32 = {"height": 32, "width": 32}
_UNBINNED = {**_GUIDED, "use_resolution_binning": False}
_SANA = {**_UNBINNED, **_32, "complex_human_instruction": None}
_NO_SIZES = {"use_additional_conditions": False}
_QWEN = {"text_encoder": "Qwen3Model", "tokenizer": "Qwen2Tokenizer"}
_T5 = {"text_encoder": "T5EncoderModel", "tokenizer": "T5Tokenizer"}
_THREE_TEXTS = {"joint_attention_dim": 24, "pooled_projection_dim": 24, "sample_size": 16}
_PLAIN = {"num_inference_steps": 2}


_HUNYUAN: dict[str, Any] = {
    "width": {"text_encoder_2": 16},
    "parts": {"text_encoder_2": "T5EncoderModel", "tokenizer_2": "T5Tokenizer"},
    "transformer": {"text_len": 77, "text_len_t5": 256},
}


def _motion() -> Any:
    return MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4,
        motion_max_seq_length=8, use_motion_mid_block=False,
    )  # fmt: skip


IMAGES: dict[str, Tiny] = {
    "ConsistencyModelPipeline": tiny(_PLAIN, unet={"num_class_embeds": 10}, inputs=(1, 2)),
    "DDIMPipeline": tiny(_PLAIN, inputs=()),
    "DDPMPipeline": tiny(_PLAIN, inputs=()),
    "PNDMPipeline": tiny({"num_inference_steps": 6}, inputs=()),
    "ScoreSdeVePipeline": tiny(_PLAIN, inputs=()),
    "LDMPipeline": tiny(_PLAIN, unet={"in_channels": 4, "out_channels": 4}, inputs=()),
    "DiTPipeline": tiny(_PLAIN, transformer={"num_embeds_ada_norm": 1000}, inputs=(1, 2)),
    "StableDiffusionPipeline": tiny(_GUIDED, unet=_STABLE),
    "StableDiffusionPAGPipeline": tiny(_GUIDED, unet=_STABLE),
    "StableDiffusionSAGPipeline": tiny(_GUIDED, unet=_STABLE),
    "StableDiffusionPanoramaPipeline": tiny(_GUIDED, unet=_STABLE),
    "StableDiffusionLDM3DPipeline": tiny(_GUIDED, unet=_STABLE, vae={"in_channels": 6, "out_channels": 6}),
    "StableDiffusionParadigmsPipeline": tiny(_GUIDED, unet=_STABLE, parts={"scheduler": "DDIMParallelScheduler"}),
    "StableDiffusionGLIGENPipeline": tiny(
        {**_GUIDED, "gligen_phrases": ["fox"], "gligen_boxes": [[0.1, 0.2, 0.6, 0.8]]},
        unet={**_STABLE, "attention_type": "gated"},
    ),
    "StableDiffusionPipelineSafe": tiny(_GUIDED, unet=_STABLE),
    "SemanticStableDiffusionPipeline": tiny(_GUIDED, unet=_STABLE),
    "LatentConsistencyModelPipeline": tiny(_SMALL, unet={**_STABLE, "time_cond_proj_dim": 8}),
    "StableDiffusionXLPipeline": tiny(_GUIDED, unet=XL),
    "StableDiffusionXLPAGPipeline": tiny(_GUIDED, unet=XL),
    "StableDiffusion3Pipeline": tiny(
        _GUIDED,
        transformer=_THREE_TEXTS,
        width={"text_encoder_3": 24},
    ),
    "StableDiffusion3PAGPipeline": tiny(
        _GUIDED,
        transformer=_THREE_TEXTS,
        width={"text_encoder_3": 24},
    ),
    "PixArtAlphaPipeline": tiny(_UNBINNED, transformer=_NO_SIZES),
    "PixArtSigmaPipeline": tiny(_UNBINNED, transformer=_NO_SIZES),
    "PixArtSigmaPAGPipeline": tiny(_UNBINNED, transformer=_NO_SIZES),
    "SanaPipeline": tiny(_SANA),
    "SanaPAGPipeline": tiny(_SANA),
    "SanaSprintPipeline": tiny(
        _SANA,
        transformer={"guidance_embeds": True},
        parts={"scheduler": "SCMScheduler"},
    ),
    "FluxPipeline": tiny(_GUIDED, transformer={"in_channels": 16, "pooled_projection_dim": 12}),
    "ChromaPipeline": tiny(_GUIDED, transformer={"in_channels": 16}),
    "BriaPipeline": tiny(_GUIDED, transformer={"in_channels": 16}, parts={"scheduler": "DDIMScheduler"}),
    "AuraFlowPipeline": tiny(_GUIDED),
    "LuminaPipeline": tiny({**_GUIDED, "negative_prompt": "fog"}),
    "Lumina2Pipeline": tiny(_GUIDED, transformer={"axes_lens": (300, 64, 64)}),
    "HunyuanDiTPipeline": tiny(_UNBINNED, **_HUNYUAN),
    "HunyuanDiTPAGPipeline": tiny(_UNBINNED, **_HUNYUAN),
    "CogView3PlusPipeline": tiny(_GUIDED),
    "CogView4Pipeline": tiny({**_GUIDED, "negative_prompt": "fog"}, parts={"tokenizer": "LlamaTokenizer"}),
    "Kandinsky3Pipeline": tiny(_GUIDED, width=16),
    "AmusedPipeline": tiny(
        _GUIDED,
        width=16,
        vqvae={"lookup_from_codebook": True},
        scheduler={"mask_token_id": 17},
        transformer={"cond_embed_dim": 16, "micro_cond_embed_dim": 10},
    ),
    "LDMTextToImagePipeline": tiny(
        _GUIDED,
        unet=_STABLE,
        parts={
            "bert": "CLIPTextModel",
            "tokenizer": "CLIPTokenizer",
            "vqvae": "AutoencoderKL",
            "unet": "UNet2DConditionModel",
            "scheduler": "DDIMScheduler",
        },
    ),
    "IFPipeline": tiny(
        _GUIDED, unet={**_STABLE, "in_channels": 3, "out_channels": 6}, scheduler={"variance_type": "learned_range"}
    ),
    "QwenImagePipeline": tiny(_SMALL),
    "ZImagePipeline": tiny(_GUIDED, parts=_QWEN, transformer={"axes_lens": [1024, 64, 64]}),
    "OvisImagePipeline": tiny(_GUIDED, transformer={"in_channels": 16, "out_channels": 16}),
    "Flux2KleinPipeline": tiny({**_GUIDED, "text_encoder_out_layers": [1, 2]}, transformer={"joint_attention_dim": 24}),
}

_WAN = {"tokenizer": "T5Tokenizer", "transformer": "WanTransformer3DModel"}
_WAN_SIZES = {"image_dim": None, "added_kv_proj_dim": None, "rope_max_seq_len": 32}
_CLIP = {**_GUIDED, "num_frames": 5}

#: Wan 2.2 with one denoiser for the first step and one for the second.
TWO_STAGES = tiny(
    {**_GUIDED, "num_inference_steps": 2, "num_frames": 1},
    parts={**_WAN, "transformer_2": "WanTransformer3DModel"},
    transformer=_WAN_SIZES,
    transformer_2=_WAN_SIZES,
    more={"boundary_ratio": 0.7},
)

VIDEOS: dict[str, Tiny] = {
    "WanPipeline": tiny(_CLIP, parts=_WAN, transformer=_WAN_SIZES),
    "SkyReelsV2Pipeline": tiny(_CLIP),
    "SkyReelsV2DiffusionForcingPipeline": tiny({**_CLIP, "base_num_frames": 5}),
    "WanVACEPipeline": tiny(_CLIP, transformer={"vace_in_channels": 72}),
    "LTXPipeline": tiny({**_GUIDED, **_32, "num_frames": 9}),
    "LTXConditionPipeline": tiny({**_GUIDED, **_32, "num_frames": 9}),
    "CogVideoXPipeline": tiny({**_CLIP, "max_sequence_length": 5}),
    "MochiPipeline": tiny(
        {**_GUIDED, "num_frames": 7},
        width=16,
        transformer={"in_channels": 12},
        vae={"latent_channels": 12, "latents_mean": [0.0] * 12, "latents_std": [1.0] * 12},
    ),
    "HunyuanVideoPipeline": tiny(_CLIP, width={"text_encoder_2": 8}),
    "HunyuanVideo15Pipeline": tiny(
        {**_SMALL, "num_frames": 5}, width={"text_encoder_2": 8}, transformer={"in_channels": 9}
    ),
    "LattePipeline": tiny({**_GUIDED, "video_length": 2}),
    "AnimateDiffPipeline": tiny({**_GUIDED, "num_frames": 3}, parts={"motion_adapter": _motion}, unet=_STABLE),
    "AnimateDiffPAGPipeline": tiny({**_GUIDED, "num_frames": 3}, parts={"motion_adapter": _motion}, unet=_STABLE),
    "AnimateDiffSDXLPipeline": tiny({**_GUIDED, "num_frames": 3}, parts={"motion_adapter": _motion}, unet=XL),
    "TextToVideoSDPipeline": tiny({**_GUIDED, "num_frames": 3}),
    "TextToVideoZeroSDXLPipeline": tiny(
        {**_GUIDED, "num_inference_steps": 4, "video_length": 2, "t0": 1, "t1": 2}, unet=XL
    ),
    "SanaVideoPipeline": tiny({**_SANA, "frames": 5}, parts={"vae": "AutoencoderKLWan"}),
    "EasyAnimatePipeline": tiny({**_CLIP, "negative_prompt": "fog"}, parts=_QWEN),
    "AnyFlowPipeline": tiny(_CLIP),
}

MORE: dict[str, Tiny] = {
    "BriaFiboPipeline": tiny(
        {**_SMALL, "negative_prompt": "fog"},
        parts={"tokenizer": "LlamaTokenizer"},
        transformer={"in_channels": 4, "joint_attention_dim": 24, "text_encoder_dim": 12},
    ),
    "ErnieImagePipeline": tiny(_SMALL, parts=_QWEN),
    "Flux2KleinKVPipeline": tiny(
        {**_SMALL, "text_encoder_out_layers": [1, 2]}, transformer={"joint_attention_dim": 24}
    ),
    "HiDreamImagePipeline": tiny(
        {**_GUIDED, "max_sequence_length": 16},
        width={"text_encoder": 4, "text_encoder_2": 4},
        parts={"tokenizer_4": "LlamaTokenizer"},
    ),
    "HunyuanImagePipeline": tiny(_SMALL),
    "Krea2Pipeline": tiny(
        _SMALL,
        parts={"tokenizer": "Qwen2Tokenizer"},
        more={"text_encoder_select_layers": [0, 1, 2]},
        transformer={"in_channels": 16},
    ),
    "PRXPipeline": tiny(_UNBINNED, parts={"vae": "AutoencoderKL", **_T5}),
    "PRXPixelPipeline": tiny(_UNBINNED, parts=_T5, transformer={"in_channels": 3}),
}

ENTRIES: dict[str, Tiny] = {**IMAGES, **VIDEOS, **MORE, **EARLIER, **LATER}
