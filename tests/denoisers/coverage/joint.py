"""Image transformers in which text and image tokens attend to each other: SD3, Flux and their kin."""

from __future__ import annotations

from typing import Any

import torch
from tests.denoisers.coverage.configuration import Draw, Small, grid, ones, small, steps

_TEXT = 12
_ROPE = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6)}


def _latent(draw: Draw, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": draw(2, 4, 8, 8), "timestep": steps(7, 500), "encoder_hidden_states": draw(2, 5, _TEXT), **more
    }  # fmt: skip


def _tokens(draw: Draw, axes: int = 3, **more: Any) -> dict[str, Any]:
    """A 4×4 picture as tokens with positions, as the Flux pipelines pass it."""
    return {
        "hidden_states": draw(2, 16, 8), "timestep": steps(0.2, 0.7), "encoder_hidden_states": draw(2, 5, _TEXT),
        "img_ids": grid(4, 4, axes=axes), "txt_ids": grid(5, axes=axes) * 0, **more,
    }  # fmt: skip


def _sizes(draw: Draw) -> dict[str, Any]:
    return {"original_size": draw(2, 2), "target_size": draw(2, 2), "crop_coords": draw(2, 2)}


JOINT: dict[str, Small] = {
    "SD3Transformer2DModel": small(
        lambda draw: _latent(draw, pooled_projections=draw(2, 8)),
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=_TEXT, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    ),
    "AuraFlowTransformer2DModel": small(
        _latent,
        sample_size=8, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=_TEXT, caption_projection_dim=16, pos_embed_max_size=64,
    ),
    "CogView3PlusTransformer2DModel": small(
        lambda draw: _latent(draw, **_sizes(draw)),
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, text_embed_dim=_TEXT,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8,
    ),
    "CogView4Transformer2DModel": small(
        lambda draw: _latent(draw, **_sizes(draw)),
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, text_embed_dim=_TEXT,
        time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8),
    ),
    "FluxTransformer2DModel": small(
        lambda draw: _tokens(draw, pooled_projections=draw(2, 8), guidance=steps(3.5, 3.5)),
        in_channels=8, num_layers=1, num_single_layers=1, joint_attention_dim=_TEXT, pooled_projection_dim=8,
        guidance_embeds=True, **_ROPE,
    ),
    "Flux2Transformer2DModel": small(
        lambda draw: _tokens(draw, axes=4, guidance=steps(3.5, 3.5)),
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=_TEXT, timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4),
    ),
    "Flux3Transformer2DModel": small(
        lambda draw: _tokens(draw, axes=4),
        in_channels=8, cond_in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=_TEXT, timestep_channels=8, axes_dims_rope=(4, 4, 4, 4),
    ),
    "ChromaTransformer2DModel": small(
        lambda draw: _tokens(draw),
        in_channels=8, num_layers=1, num_single_layers=1, joint_attention_dim=_TEXT, approximator_num_channels=8,
        approximator_hidden_dim=16, approximator_layers=1, **_ROPE,
    ),
    "BriaTransformer2DModel": small(
        lambda draw: _tokens(draw),
        in_channels=8, num_layers=1, num_single_layers=1, joint_attention_dim=_TEXT, **_ROPE,
    ),
    "BriaFiboTransformer2DModel": small(
        lambda draw: _tokens(draw, text_encoder_layers=[draw(2, 5, 8), draw(2, 5, 8)]),
        in_channels=8, num_layers=1, num_single_layers=1, joint_attention_dim=_TEXT, text_encoder_dim=8, **_ROPE,
    ),
    "OvisImageTransformer2DModel": small(
        lambda draw: _tokens(draw),
        in_channels=8, out_channels=8, num_layers=1, num_single_layers=1, joint_attention_dim=_TEXT, **_ROPE,
    ),
    "LongCatImageTransformer2DModel": small(
        lambda draw: _tokens(draw),
        in_channels=8, num_layers=1, num_single_layers=1, joint_attention_dim=_TEXT, pooled_projection_dim=_TEXT,
        **_ROPE,
    ),
    "QwenImageTransformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 16, 16), "timestep": steps(0.2, 0.7), "encoder_hidden_states": draw(2, 5, _TEXT),
            "encoder_hidden_states_mask": ones(2, 5), "img_shapes": [[(1, 4, 4)]] * 2,
        },
        in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=_TEXT, **_ROPE,
    ),
    "QwenImage21Transformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 16, 8), "timestep": steps(0.2, 0.7), "encoder_hidden_states": draw(2, 5, _TEXT),
            "img_shapes": [[(1, 4, 4)]] * 2, "img_mask": torch.tensor([[False] * 5 + [True] * 4] * 2),
        },
        in_channels=8, out_channels=8, num_layers=2, context_in_dim=_TEXT, **_ROPE,
    ),
    "HiDreamImageTransformer2DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 4, 8, 8), "timesteps": steps(7, 500),
            "encoder_hidden_states_t5": draw(2, 5, _TEXT),
            "encoder_hidden_states_llama3": draw(2, 2, 5, _TEXT), "pooled_embeds": draw(2, 8),
        },
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[_TEXT, _TEXT], text_emb_dim=8, num_routed_experts=2,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(8, 8), llama_layers=(0, 1),
        force_inference_output=True,
    ),
    "HunyuanImageTransformer2DModel": small(
        lambda draw: _latent(draw, timestep=steps(7.0, 500.0), encoder_attention_mask=ones(2, 5)),
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=_TEXT, rope_axes_dim=(4, 4), patch_size=(1, 1),
    ),
    "JoyImageEditTransformer3DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 4, 1, 8, 8), "timestep": steps(7, 500), "encoder_hidden_states": draw(2, 5, _TEXT),
        },
        in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=_TEXT, num_layers=2, rope_dim_list=[4, 6, 6],
    ),
    "JoyImageEditPlusTransformer3DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 16, 4, 1, 2, 2), "timestep": steps(7, 500),
            "encoder_hidden_states": draw(2, 5, _TEXT), "encoder_hidden_states_mask": ones(2, 5),
            "shape_list": [[(1, 4, 4)]] * 2,
        },
        in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=_TEXT, num_layers=2, rope_dim_list=[4, 6, 6],
    ),
}  # fmt: skip
