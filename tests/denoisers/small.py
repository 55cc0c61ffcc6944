"""Small denoisers of further kinds, with the inputs of one forward."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel, HunyuanDiT2DModel, SD3Transformer2DModel, UNet2DConditionModel
from tests.conftest import randomized
from torch import nn


def hunyuan() -> tuple[nn.Module, dict[str, Any]]:
    """Four blocks: block 3 reads block 0 beside block 2."""
    model = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
        num_layers=6, mlp_ratio=2.0, cross_attention_dim=16, cross_attention_dim_t5=24, pooled_projection_dim=16,
        text_len=5, text_len_t5=6,
    )  # fmt: skip
    chance = torch.Generator().manual_seed(3)
    call = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=chance),
        "timestep": torch.tensor([7.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=chance),
        "text_embedding_mask": torch.ones(2, 5),
        "encoder_hidden_states_t5": torch.randn(2, 6, 24, generator=chance),
        "text_embedding_mask_t5": torch.ones(2, 6),
        "image_meta_size": torch.rand(2, 6, generator=chance),
        "style": torch.tensor([0, 0]),
        "return_dict": False,
    }
    return randomized(model, 1), call


def flux() -> tuple[nn.Module, dict[str, Any]]:
    """One double and two single blocks."""
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    chance = torch.Generator().manual_seed(3)
    call = {
        "hidden_states": torch.randn(2, 9, 4, generator=chance),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=chance),
        "pooled_projections": torch.randn(2, 10, generator=chance),
        "timestep": torch.tensor([0.1, 0.7]),
        "guidance": torch.tensor([3.5, 2.0]),
        "img_ids": torch.rand(9, 3, generator=chance),
        "txt_ids": torch.zeros(5, 3),
    }
    return randomized(model, 2), call


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=12, caption_projection_dim=32, pooled_projection_dim=10, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    chance = torch.Generator().manual_seed(3)
    call = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=chance),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=chance),
        "pooled_projections": torch.randn(2, 10, generator=chance),
        "timestep": torch.tensor([7, 500]),
    }
    return randomized(model, 2), call


def sdxl() -> tuple[nn.Module, dict[str, Any]]:
    """A U-Net with micro-conditions."""
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24, attention_head_dim=(2, 4), norm_num_groups=8, transformer_layers_per_block=(1, 2),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=60,
    )  # fmt: skip
    chance = torch.Generator().manual_seed(3)
    added = {"text_embeds": torch.randn(2, 12, generator=chance), "time_ids": torch.rand(2, 6, generator=chance)}
    call = {
        "sample": torch.randn(2, 4, 8, 8, generator=chance),
        "timestep": torch.tensor([7, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=chance),
        "added_cond_kwargs": added,
    }
    return randomized(model, 2), call


SMALL = {"hunyuan": hunyuan, "flux": flux, "sd3": sd3, "sdxl": sdxl}
