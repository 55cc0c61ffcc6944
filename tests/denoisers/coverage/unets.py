"""Convolutional U-Nets: ResNet blocks, down and up stages joined by skips."""

from __future__ import annotations

from tests.denoisers.coverage.configuration import Small, ones, small, steps

_TEXT = 12

UNETS: dict[str, Small] = {
    "UNet2DModel": small(
        lambda draw: {"sample": draw(2, 3, 8, 8), "timestep": steps(7, 500)},
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2DConditionModel": small(
        lambda draw: {
            "sample": draw(2, 4, 8, 8), "timestep": steps(7, 500), "encoder_hidden_states": draw(2, 5, _TEXT),
            "added_cond_kwargs": {"text_embeds": draw(2, 8), "time_ids": draw(2, 6)},
        },
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=_TEXT, transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
    ),
    "UNet1DModel": small(
        lambda draw: {"sample": draw(2, 6, 16), "timestep": steps(7, 500)},
        sample_size=16, in_channels=6, out_channels=6, block_out_channels=(8, 8, 16), time_embedding_type="positional",
        use_timestep_embedding=True, flip_sin_to_cos=False, freq_shift=1.0, act_fn="swish", norm_num_groups=4,
        down_block_types=("DownResnetBlock1D",) * 3, up_block_types=("UpResnetBlock1D",) * 2,
        mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock", downsample_each_block=False,
    ),
    "UNet3DConditionModel": small(
        lambda draw: {
            "sample": draw(1, 4, 3, 8, 8), "timestep": steps(7), "encoder_hidden_states": draw(1, 5, _TEXT),
        },
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=_TEXT,
    ),
    "UNetMotionModel": small(
        lambda draw: {
            "sample": draw(1, 4, 3, 8, 8), "timestep": steps(7), "encoder_hidden_states": draw(3, 5, _TEXT),
        },
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        cross_attention_dim=_TEXT, motion_num_attention_heads=2, motion_max_seq_length=4,
    ),
    "UNetSpatioTemporalConditionModel": small(
        lambda draw: {
            "sample": draw(1, 2, 8, 8, 8), "timestep": steps(7), "encoder_hidden_states": draw(1, 1, _TEXT),
            "added_time_ids": draw(1, 3),
        },
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, num_attention_heads=(2, 4), num_frames=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=_TEXT, addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
    ),
    "I2VGenXLUNet": small(
        lambda draw: {
            "sample": draw(1, 4, 2, 8, 8), "timestep": steps(7), "fps": steps(8), "image_latents": draw(1, 4, 2, 8, 8),
            "image_embeddings": draw(1, _TEXT), "encoder_hidden_states": draw(1, 5, _TEXT),
        },
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=_TEXT,
    ),
    "Kandinsky3UNet": small(
        lambda draw: {
            "sample": draw(2, 4, 8, 8), "timestep": steps(7, 500), "encoder_hidden_states": draw(2, 5, 16),
            "encoder_attention_mask": ones(2, 5),
        },
        time_embedding_dim=8, groups=4, attention_head_dim=4, layers_per_block=3, block_out_channels=(8, 16),
        cross_attention_dim=8, encoder_hid_dim=16,
    ),
    "StableCascadeUNet": small(
        lambda draw: {
            "sample": draw(2, 4, 8, 8), "timestep_ratio": steps(0.2, 0.7), "clip_text_pooled": draw(2, 1, 16),
            "clip_text": draw(2, 5, 16), "clip_img": draw(2, 1, 16),
        },
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, conditioning_dim=16, block_out_channels=(16, 16),
        num_attention_heads=(2, 2), down_num_layers_per_block=(1, 2), up_num_layers_per_block=(2, 1),
        clip_text_in_channels=16, clip_text_pooled_in_channels=16, clip_image_in_channels=16, clip_seq=2,
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
    ),
    "UVit2DModel": small(
        lambda draw: {
            "input_ids": draw.whole(16, 2, 8, 8), "encoder_hidden_states": draw(2, 5, 16),
            "pooled_text_emb": draw(2, 8), "micro_conds": draw(2, 5),
        },
        hidden_size=16, cond_embed_dim=8, micro_cond_encode_dim=2, micro_cond_embed_dim=10, encoder_hidden_size=16,
        vocab_size=18, codebook_size=16, in_channels=16, block_out_channels=16, num_res_blocks=1, downsample=True,
        upsample=True, block_num_heads=2, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        sample_size=8,
    ),
    "DreamLiteUNetModel": small(
        lambda draw: {
            "sample": draw(2, 4, 8, 8), "timestep": steps(7, 500), "encoder_hidden_states": draw(2, 5, _TEXT),
        },
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        cross_attention_dim=_TEXT, ff_mult=2,
    ),
}  # fmt: skip
