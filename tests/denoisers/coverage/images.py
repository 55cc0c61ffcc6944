"""Image transformers whose text, if any, is read by cross-attention or stands before the image in one sequence."""

from __future__ import annotations

from typing import Any

import torch
from tests.denoisers.coverage.configuration import Draw, Small, grid, ones, small, steps

_TEXT = 12


def _latent(draw: Draw, channels: int = 4, **more: Any) -> dict[str, Any]:
    return {"hidden_states": draw(2, channels, 8, 8), "timestep": steps(7, 500), **more}


def _text(draw: Draw, channels: int = 4, **more: Any) -> dict[str, Any]:
    return _latent(draw, channels, encoder_hidden_states=draw(2, 5, _TEXT), **more)


IMAGES: dict[str, Small] = {
    "DiTTransformer2DModel": small(
        lambda draw: _latent(draw, class_labels=draw.whole(10, 2)),
        num_attention_heads=2, attention_head_dim=8, num_layers=2, patch_size=2, sample_size=8, in_channels=4,
        out_channels=8, num_embeds_ada_norm=10,
    ),
    "PixArtTransformer2DModel": small(
        lambda draw: _text(
            draw, added_cond_kwargs={"resolution": draw(2, 2), "aspect_ratio": draw(2, 1)},
            encoder_attention_mask=ones(2, 5),
        ),
        num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, caption_channels=_TEXT,
        sample_size=8, use_additional_conditions=True,
    ),
    "Transformer2DModel": small(
        lambda draw: {"hidden_states": draw(2, 8, 8, 8), "encoder_hidden_states": draw(2, 5, _TEXT)},
        num_attention_heads=2, attention_head_dim=8, in_channels=8, num_layers=1, norm_num_groups=4,
        cross_attention_dim=_TEXT,
    ),
    "DreamLiteTransformer2DModel": small(
        lambda draw: {"hidden_states": draw(2, 8, 8, 8), "encoder_hidden_states": draw(2, 5, _TEXT)},
        num_attention_heads=2, attention_head_dim=8, in_channels=8, num_layers=1, norm_num_groups=4,
        cross_attention_dim=_TEXT,
    ),
    "HunyuanDiT2DModel": small(
        lambda draw: _text(
            draw, timestep=steps(7.0, 500.0), text_embedding_mask=ones(2, 5), encoder_hidden_states_t5=draw(2, 6, 16),
            text_embedding_mask_t5=ones(2, 6), image_meta_size=draw.whole(64, 2, 6).float(),
            style=torch.zeros(2, dtype=torch.long),
            image_rotary_emb=[draw(16, 8), draw(16, 8)],
        ),
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=4, cross_attention_dim=_TEXT, cross_attention_dim_t5=16, pooled_projection_dim=8, text_len=5,
        text_len_t5=6,
    ),
    "LuminaNextDiT2DModel": small(
        lambda draw: _text(draw, encoder_mask=ones(2, 5), image_rotary_emb=torch.polar(ones(4, 4, 4).float(),
            draw(4, 4, 4)), cross_attention_kwargs={}),
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=3,
        num_kv_heads=1, multiple_of=8, cross_attention_dim=_TEXT,
    ),
    "Lumina2Transformer2DModel": small(
        lambda draw: _text(draw, encoder_attention_mask=ones(2, 5).bool()),
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(16, 16, 16),
        cap_feat_dim=_TEXT,
    ),
    "SanaTransformer2DModel": small(
        lambda draw: _text(draw),
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=_TEXT,
        sample_size=8,
    ),
    "PRXTransformer2DModel": small(
        lambda draw: _text(draw, attention_mask=ones(2, 5).bool()),
        in_channels=4, patch_size=2, context_in_dim=_TEXT, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2,
        axes_dim=[4, 4],
    ),
    "OmniGenTransformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 4, 8, 8), "timestep": steps(0.2, 0.7), "input_ids": draw.whole(32, 2, 5),
            "input_img_latents": [], "input_image_sizes": {}, "attention_mask": ones(2, 22, 22),
            "position_ids": torch.arange(22)[None].expand(2, -1),
        },
        in_channels=4, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
        num_layers=2, pad_token_id=0, vocab_size=32, max_position_embeddings=64, original_max_position_embeddings=64,
        time_step_dim=8, rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
    ),
    "ErnieImageTransformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 8, 4, 4), "timestep": steps(7, 500), "text_bth": draw(2, 5, _TEXT),
            "text_lens": torch.tensor([5, 5]),
        },
        hidden_size=16, num_attention_heads=1, num_layers=2, ffn_hidden_size=32, in_channels=8, out_channels=8,
        text_in_dim=_TEXT, rope_axes_dim=(4, 6, 6),
    ),
    "ZImageTransformer2DModel": small(
        lambda draw: {"x": [draw(4, 1, 8, 8), draw(4, 1, 8, 8)], "t": steps(0.2, 0.7),
            "cap_feats": [draw(5, _TEXT), draw(6, _TEXT)]},
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=1, n_kv_heads=1, cap_feat_dim=_TEXT,
        axes_dims=[4, 6, 6], axes_lens=[64, 64, 64],
    ),
    "Ideogram4Transformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 12, 8), "timestep": steps(0.2, 0.7), "encoder_hidden_states": draw(2, 12, _TEXT),
            "position_ids": grid(3, 4).long()[None].expand(2, -1, -1), "segment_ids": ones(2, 12),
            "indicator": torch.tensor([[3] * 4 + [2] * 8] * 2),
        },
        in_channels=8, num_layers=2, attention_head_dim=16, num_attention_heads=2, intermediate_size=32, adaln_dim=8,
        llm_features_dim=_TEXT, mrope_section=(4, 2, 2),
    ),
    "Krea2Transformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 12, 8), "timestep": steps(0.2, 0.7), "encoder_hidden_states": draw(2, 5, 3, _TEXT),
            "position_ids": grid(17),
        },
        in_channels=8, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=_TEXT, num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=24, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ),
    "GlmImageTransformer2DModel": small(
        lambda draw: _text(
            draw, prior_token_id=draw.whole(16, 2, 16), prior_token_drop=torch.zeros(2, 16, dtype=torch.bool),
            target_size=draw(2, 2), crop_coords=draw(2, 2),
        ),
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, text_embed_dim=_TEXT,
        time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=16,
    ),
    "NucleusMoEImageTransformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 16, 16), "timestep": steps(0.2, 0.7), "img_shapes": [(1, 4, 4)] * 2,
            "encoder_hidden_states": draw(2, 5, _TEXT), "encoder_hidden_states_mask": ones(2, 5).bool(),
        },
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        num_key_value_heads=1, joint_attention_dim=_TEXT, axes_dims_rope=(4, 6, 6), mlp_ratio=8.0, num_experts=4,
        moe_intermediate_dim=24, dense_moe_strategy="leave_first_three_and_last_block_dense",
    ),
    "BriaFibo2Transformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 8, 8, 8), "timestep": steps(0.2, 0.7),
            "encoder_hidden_states": draw(2, 2, 5, _TEXT),
        },
        in_channels=8, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=_TEXT, injection_layer_ids=(1,),
        perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=2, gist_min_text_len=4,
        gist_max_text_len=8, axes_dims=(4, 6, 6), axes_lens=(64, 64, 64),
    ),
}  # fmt: skip
