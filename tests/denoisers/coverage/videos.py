"""Video transformers."""

from __future__ import annotations

from typing import Any

import torch
from tests.denoisers.coverage.configuration import Draw, Small, ones, small, steps

_TEXT = 12


def _clip(draw: Draw, *, channels: int = 4, frames: int = 2, **more: Any) -> dict[str, Any]:
    """[batch, channels, frames, height, width]"""
    return {
        "hidden_states": draw(1, channels, frames, 8, 8), "timestep": steps(7),
        "encoder_hidden_states": draw(1, 5, _TEXT), **more,
    }  # fmt: skip


def _tokens(draw: Draw, **more: Any) -> dict[str, Any]:
    """Two frames of 4×4 latents as tokens."""
    return {
        "hidden_states": draw(1, 32, 4), "timestep": steps(7), "encoder_hidden_states": draw(1, 5, _TEXT),
        "encoder_attention_mask": ones(1, 5), "num_frames": 2, "height": 4, "width": 4, **more,
    }  # fmt: skip


_WAN = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": _TEXT,
    "freq_dim": 8, "ffn_dim": 24, "num_layers": 2, "rope_max_seq_len": 16,
}  # fmt: skip
_COGVIDEO = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "time_embed_dim": 4,
    "text_embed_dim": _TEXT, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 5,
    "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 5,
}  # fmt: skip
_HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
    "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": _TEXT, "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}  # fmt: skip

VIDEOS: dict[str, Small] = {
    "WanTransformer3DModel": small(
        lambda draw: _clip(draw, encoder_hidden_states_image=draw(1, 3, 10)),
        **_WAN, image_dim=10, added_kv_proj_dim=24,
    ),
    "ChronoEditTransformer3DModel": small(_clip, **_WAN, rope_temporal_skip_len=8),
    "SkyReelsV2Transformer3DModel": small(_clip, **_WAN),
    "WanVACETransformer3DModel": small(
        lambda draw: _clip(
            draw, control_hidden_states=draw(1, 6, 2, 8, 8), control_hidden_states_scale=torch.ones(1)
        ),
        **{**_WAN, "vace_layers": [0], "vace_in_channels": 6},
    ),
    "WanAnimateTransformer3DModel": small(
        lambda draw: _clip(
            draw, channels=12, frames=3, encoder_hidden_states_image=draw(1, 3, 10),
            pose_hidden_states=draw(1, 4, 2, 8, 8),
            face_pixel_values=draw(1, 3, 5, 16, 16),
        ),
        **{**_WAN, "in_channels": 12, "latent_channels": 4}, image_dim=10, added_kv_proj_dim=24,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    ),
    "AnyFlowTransformer3DModel": small(
        lambda draw: _clip(
            draw, hidden_states=draw(1, 2, 4, 8, 8), timestep=steps(7, 7)[None], r_timestep=steps(3, 3)[None]
        ),
        **_WAN,
    ),
    "HeliosTransformer3DModel": small(
        lambda draw: _clip(
            draw, indices_hidden_states=torch.arange(2)[None], indices_latents_history_short=torch.arange(1)[None],
            indices_latents_history_mid=torch.arange(2)[None], indices_latents_history_long=torch.arange(4)[None],
            latents_history_short=draw(1, 4, 1, 8, 8), latents_history_mid=draw(1, 4, 2, 8, 8),
            latents_history_long=draw(1, 4, 4, 8, 8),
        ),
        **{k: v for k, v in _WAN.items() if k != "rope_max_seq_len"}, rope_dim=(4, 4, 4),
    ),
    "CogVideoXTransformer3DModel": small(
        lambda draw: _clip(draw, hidden_states=draw(1, 2, 4, 8, 8)), **_COGVIDEO
    ),
    "ConsisIDTransformer3DModel": small(
        lambda draw: _clip(
            draw, hidden_states=draw(1, 2, 4, 8, 8), id_cond=draw(1, 2), id_vit_hidden=[draw(1, 2, 2)]
        ),
        **_COGVIDEO, is_train_face=True, cross_attn_interval=1, LFE_id_dim=2, LFE_vit_dim=2, LFE_depth=5,
        LFE_dim_head=8, LFE_num_heads=2, LFE_num_id_token=1, LFE_num_querie=1, LFE_output_dim=10, LFE_ff_mult=1,
        LFE_num_scale=1, cross_attn_dim_head=8, cross_attn_num_heads=2,
    ),
    "AllegroTransformer3DModel": small(
        lambda draw: _clip(
            draw, attention_mask=ones(1, 2, 8, 8), encoder_attention_mask=ones(1, 5),
        ),
        num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, caption_channels=_TEXT,
        sample_height=8, sample_width=8, sample_frames=2,
    ),
    "LatteTransformer3DModel": small(
        _clip,
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=_TEXT, video_length=2, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=10, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    ),
    "MochiTransformer3DModel": small(
        lambda draw: _clip(draw, encoder_hidden_states=draw(1, 5, 16), encoder_attention_mask=ones(1, 5).bool()),
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=24,
        in_channels=4, text_embed_dim=16, time_embed_dim=4, max_sequence_length=5,
    ),
    "LTXVideoTransformer3DModel": small(
        _tokens,
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=_TEXT,
    ),
    "LTX2VideoTransformer3DModel": small(
        lambda draw: _tokens(
            draw, audio_hidden_states=draw(1, 4, 4), audio_encoder_hidden_states=draw(1, 5, _TEXT), audio_num_frames=4,
            audio_encoder_attention_mask=ones(1, 5), fps=25.0,
        ),
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=_TEXT, rope_double_precision=False,
    ),
    "HunyuanVideoTransformer3DModel": small(
        lambda draw: _clip(
            draw, encoder_attention_mask=ones(1, 5), pooled_projections=draw(1, 8), guidance=steps(3.5)
        ),
        **_HUNYUAN,
    ),
    "HunyuanVideoFramepackTransformer3DModel": small(
        lambda draw: _clip(
            draw, encoder_attention_mask=ones(1, 5), pooled_projections=draw(1, 8), guidance=steps(3.5),
            image_embeds=draw(1, 3, 6), indices_latents=torch.arange(2), latents_clean=draw(1, 4, 2, 8, 8),
            indices_latents_clean=torch.arange(2), latents_history_2x=draw(1, 4, 2, 8, 8),
            indices_latents_history_2x=torch.arange(2), latents_history_4x=draw(1, 4, 4, 8, 8),
            indices_latents_history_4x=torch.arange(4),
        ),
        **_HUNYUAN, has_image_proj=True, image_proj_dim=6, has_clean_x_embedder=True,
    ),
    "HunyuanVideo15Transformer3DModel": small(
        lambda draw: _clip(
            draw, timestep=steps(7.0), encoder_attention_mask=ones(1, 5).bool(), encoder_hidden_states_2=draw(1, 4, 8),
            encoder_attention_mask_2=ones(1, 4).bool(), image_embeds=draw(1, 3, 6),
        ),
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_refiner_layers=1,
        text_embed_dim=_TEXT, text_embed_2_dim=8, image_embed_dim=6, rope_axes_dim=(2, 4, 4), target_size=8,
    ),
    "MotifVideoTransformer3DModel": small(
        lambda draw: _clip(draw, encoder_attention_mask=ones(1, 5)),
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=1,
        text_embed_dim=_TEXT, rope_axes_dim=(2, 4, 4),
    ),
    "EasyAnimateTransformer3DModel": small(
        lambda draw: _clip(draw),
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2, num_layers=2,
        mmdit_layers=1, time_embed_dim=4, text_embed_dim=_TEXT, sample_width=8, sample_height=8,
    ),
    "CosmosTransformer3DModel": small(
        lambda draw: _clip(draw, fps=24),
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2.0,
        text_embed_dim=_TEXT, adaln_lora_dim=4, max_size=(4, 8, 8), concat_padding_mask=False,
    ),
    "SanaVideoTransformer3DModel": small(
        _clip,
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=_TEXT,
        sample_size=8, rope_max_seq_len=16,
    ),
    "Kandinsky5Transformer3DModel": small(
        lambda draw: {
            "hidden_states": draw(1, 2, 8, 8, 4), "encoder_hidden_states": draw(1, 5, _TEXT), "timestep": steps(7),
            "pooled_projections": draw(1, 8), "visual_rope_pos": [torch.arange(n) for n in (2, 4, 4)],
            "text_rope_pos": torch.arange(5),
        },
        in_text_dim=_TEXT, in_text_dim2=8, time_dim=16, model_dim=24, ff_dim=32, num_text_blocks=1, num_visual_blocks=2,
        axes_dims=(4, 4, 4),
    ),
    "Kandinsky6Transformer3DModel": small(
        lambda draw: {
            "hidden_states": draw(1, 2, 8, 8, 4), "encoder_hidden_states": draw(1, 5, _TEXT), "timestep": steps(7),
            "pooled_projections": draw(1, 8), "audio_hidden_states": draw(1, 6, 3),
        },
        in_audio_dim=3, out_audio_dim=3, in_visual_dim=4, out_visual_dim=4, in_text_dim=_TEXT, in_text_dim2=8,
        time_dim=16, model_dim=24, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 4), visual_cond=False,
    ),
    "Kandinsky6SRTransformer3DModel": small(
        lambda draw: {"hidden_states": draw(1, 2, 16, 8, 9), "timestep": steps(7)},
        in_visual_dim=4, out_visual_dim=4, time_dim=16, model_dim=24, ff_dim=32, num_visual_blocks=2,
        axes_dims=(4, 4, 4),
    ),
    "TransformerTemporalModel": small(
        lambda draw: {"hidden_states": draw(4, 8, 8, 8), "num_frames": 2},
        num_attention_heads=2, attention_head_dim=8, in_channels=8, num_layers=1, norm_num_groups=4,
    ),
}  # fmt: skip
