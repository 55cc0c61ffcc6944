"""Audio, priors and other transformers that are neither pictures nor video."""

from __future__ import annotations

import torch
from tests.denoisers.coverage.configuration import Small, ones, small, steps

_TEXT = 12

OTHERS: dict[str, Small] = {
    "PriorTransformer": small(
        lambda draw: {
            "hidden_states": draw(2, 8), "timestep": steps(7, 500), "proj_embedding": draw(2, 8),
            "encoder_hidden_states": draw(2, 5, 8),
        },
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=8, num_embeddings=5,
        additional_embeddings=4,
    ),
    "StableAudioDiTModel": small(
        lambda draw: {
            "hidden_states": draw(2, 4, 8), "timestep": steps(0.2, 0.7), "encoder_hidden_states": draw(2, 5, _TEXT),
            "global_hidden_states": draw(2, 1, 8), "rotary_embedding": (draw(9, 4), draw(9, 4)),
        },
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        num_key_value_attention_heads=1, out_channels=4, cross_attention_dim=8, time_proj_dim=8,
        global_states_input_dim=8, cross_attention_input_dim=_TEXT,
    ),
    "StableAudio3DiTModel": small(
        lambda draw: {
            "hidden_states": draw(2, 4, 8), "timestep": steps(0.2, 0.7), "encoder_hidden_states": draw(2, 5, _TEXT),
            "global_hidden_states": draw(2, 8), "local_add_cond": draw(2, 5, 8),
        },
        io_channels=4, embed_dim=16, depth=2, num_heads=2, cond_token_dim=_TEXT, global_cond_dim=8,
        local_add_cond_dim=5, timestep_features_dim=8, ff_mult=2.0, num_memory_tokens=2,
    ),
    "AceStepTransformer1DModel": small(
        lambda draw: {
            "hidden_states": draw(2, 8, 4), "timestep": steps(0.2, 0.7), "timestep_r": steps(0.1, 0.3),
            "encoder_hidden_states": draw(2, 5, 16), "context_latents": draw(2, 8, 8),
        },
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, in_channels=12, audio_acoustic_hidden_dim=4, patch_size=2, sliding_window=4,
    ),
    "LongCatAudioDiTTransformer": small(
        lambda draw: {
            "hidden_states": draw(2, 8, 4), "encoder_hidden_states": draw(2, 5, _TEXT),
            "encoder_attention_mask": ones(2, 5).bool(), "timestep": steps(0.2, 0.7), "latent_cond": draw(2, 8, 4),
        },
        dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=_TEXT, latent_dim=4, ff_mult=2.0,
    ),
    "MiniMaxMusic3Transformer1DModel": small(
        lambda draw: {"hidden_states": draw(2, 4, 8), "timestep": steps(0.2, 0.7),
            "encoder_hidden_states": draw(2, 8, 6)},
        in_channels=4, condition_dim=6, num_layers=2, num_attention_heads=2, attention_head_dim=8, ff_inner_dim=32,
        rotary_dim=4, fourier_embedding_dim=8,
    ),
    "MiniMaxMusic3RVQDepthDecoder": small(
        lambda draw: {"inputs_embeds": draw(2, 4, 16)},
        hidden_size=16, num_layers=2, num_attention_heads=2, intermediate_size=32, audio_vocab_size=16, num_codebooks=4,
    ),
    "T5FilmDecoder": small(
        lambda draw: {
            "encodings_and_masks": [(draw(2, 5, 16), ones(2, 5))], "decoder_input_tokens": draw(2, 6, 4),
            "decoder_noise_time": steps(0.2, 0.7),
        },
        input_dims=4, targets_length=6, d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=32,
    ),
}  # fmt: skip
_ = torch
