"""Transformers over packed sequences of several kinds of data: video with audio, camera or action."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from tests.denoisers.coverage.configuration import Draw, Small, grid, ones, small, steps

_TEXT = 12


def _packed(draw: Draw) -> dict[str, Any]:
    """Five text rows, four audio rows, eight video rows of one sequence, at two noise levels."""
    kinds = torch.tensor([1] * 5 + [2] * 4 + [0] * 8)
    return {
        "hidden_states": draw(1, 8, 8), "audio_hidden_states": draw(1, 4, 3),
        "encoder_hidden_states": draw(1, 5, _TEXT),
        "timestep": steps(0.2, 0.7), "timestep_indices": (kinds == 0).long(), "token_tags": kinds,
        "position_ids": grid(17).long(), "video_indices": torch.arange(9, 17), "audio_indices": torch.arange(5, 9),
        "text_indices": torch.arange(5),
    }  # fmt: skip


def _cameras(frames: int, size: int) -> torch.Tensor:
    """[1, frames, 20]: a 4×4 pose that moves forward, and a pinhole's focal lengths and centre."""
    pose = torch.eye(4).repeat(frames, 1, 1)
    pose[:, 2, 3] = torch.arange(frames) * 0.1
    return torch.cat([pose.flatten(1), torch.tensor([size, size, size / 2, size / 2]).expand(frames, 4)], dim=1)[None]


WORLDS: dict[str, Small] = {
    "MiniMaxH3Transformer3DModel": small(
        _packed,
        num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=2, num_refiner_layers=1, ffn_dim=32,
        in_channels=2, audio_in_channels=3, text_dim=_TEXT, freq_dim=8, time_embed_hidden_dim=16, time_embed_dim=8,
        rope_freq_dim=2,
    ),
    "Cosmos3OmniTransformer": small(
        lambda draw: {
            "input_ids": draw.whole(16, 5), "text_indexes": torch.arange(5),
            "position_ids": torch.arange(15).repeat(3, 1),
            "und_len": 5, "sequence_length": 15, "vision_tokens": [draw(1, 4, 2, 4, 4)],
            "vision_token_shapes": [(2, 2, 2)], "vision_sequence_indexes": torch.arange(5, 13),
            "vision_mse_loss_indexes": torch.arange(5, 13), "vision_timesteps": torch.full((8,), 500.0),
            "vision_noisy_frame_indexes": [torch.arange(2)], "sound_tokens": [draw(3, 2)],
            "sound_token_shapes": [(2, 1, 1)], "sound_sequence_indexes": torch.arange(13, 15),
            "sound_mse_loss_indexes": torch.arange(13, 15), "sound_timesteps": torch.full((2,), 500.0),
            "sound_noisy_frame_indexes": [torch.arange(2)],
        },
        head_dim=16, hidden_size=16, intermediate_size=32, latent_channel=4, num_attention_heads=2, num_hidden_layers=2,
        num_key_value_heads=1, patch_latent_dim=16, vocab_size=16, rope_axes_dim=[4, 2, 2], sound_gen=True, sound_dim=3,
    ),
    "WanAnimate2Transformer3DModel": small(
        lambda draw: {
            "hidden_states": [draw(4, 2, 4, 4)], "timestep": steps(1.0), "encoder_hidden_states": [draw(5, _TEXT)],
            "condition_latents": [draw(6, 2, 4, 4)], "encoder_hidden_states_image": draw(1, 3, 1280),
            "kv_cache": WanAnimate2KVCache(2), "kv_cache_mode": "extract", "seq_len": 8,
            "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
        },
        text_len=6, in_dim=10, dim=24, ffn_dim=32, freq_dim=8, text_dim=_TEXT, out_dim=4, num_heads=2, num_layers=2,
    ),
    "SanaWMTransformer3DModel": small(
        lambda draw: {
            "hidden_states": draw(1, 4, 2, 4, 4), "timestep": torch.full((1, 1, 2), 500.0),
            "encoder_hidden_states": draw(1, 1, 5, _TEXT), "encoder_attention_mask": ones(1, 5),
            "camera_conditions": _cameras(2, 4), "chunk_plucker": draw(1, 6, 2, 4, 4),
        },
        in_channels=4, num_layers=2, hidden_size=32, num_attention_heads=2, softmax_every_n=2, linear_head_dim=16,
        caption_channels=_TEXT, mlp_ratio=2.0, chunk_plucker_channels=6, chunk_plucker_post_attn_blocks=2,
    ),
    "SanaWMLTX2RefinerTransformer3DModel": small(
        lambda draw: {
            "hidden_states": draw(1, 32, 4), "encoder_hidden_states": draw(1, 5, _TEXT),
            "timestep": torch.full((1, 32), 500.0), "video_rotary_emb": (draw(1, 32, 16), draw(1, 32, 16)),
            "encoder_attention_mask": ones(1, 5),
        },
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=_TEXT, rope_double_precision=False,
    ),
    "AnyFlowFARTransformer3DModel": small(
        lambda draw: {
            "hidden_states": draw(1, 2, 4, 8, 8), "timestep": steps(7, 7)[None], "r_timestep": steps(3, 3)[None],
            "encoder_hidden_states": draw(1, 5, _TEXT), "chunk_partition": [1, 1],
        },
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=_TEXT, freq_dim=8,
        ffn_dim=24, num_layers=2, rope_max_seq_len=16, full_chunk_limit=1, chunk_partition=(1, 1),
    ),
    "RFD4ProteinaTransformer": small(
        lambda draw: {
            "bb_ca": draw(1, 6, 3), "local_latents": draw(1, 6, 4), "bb_ca_time": steps(0.2),
            "local_latents_time": steps(0.7), "padding_mask": ones(1, 6).bool(), "token_type": ones(1, 6),
            "conditioning": {
                "is_in_context_conditioning": torch.zeros(1, 6), "supports_local_latent": ones(1, 6),
            },
        },
        nlayers=2, token_dim=16, nheads=2, dim_cond=8, pair_repr_dim=8, latent_dim=4, token_type_emb_dim=4,
        cath_emb_dim=4, t_emb_dim=8, seq_sep_dim=4, xt_pair_dist_dim=4, feats_seq=("xt_bb_ca", "xt_local_latents"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"), feats_pair_repr=("xt_bb_ca_pair_dists",),
        tri_mult_c=8, num_sequence_classes=5,
    ),
}  # fmt: skip
