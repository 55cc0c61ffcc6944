"""Tiny instances of pipelines of earlier years: unCLIP and its kin, which make a picture in stages, and others."""

from __future__ import annotations

from typing import Any

import transformers
from diffusers.pipelines.deprecated.unidiffuser.modeling_text_decoder import UniDiffuserTextDecoder
from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UniDiffuserModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from tests.conftest import randomized
from tests.sweep.build import Tiny, halved, tiny
from tests.sweep.texts import WIDTH, multilingual_tokenizer
from torch import nn

_GUIDED = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 3.0}
_STAGED = {**_GUIDED, "prior_num_inference_steps": 2}
_PLAIN = {"addition_embed_type": None, "addition_time_embed_dim": None, "projection_class_embeddings_input_dim": None}
_PRIOR = {"embedding_dim": WIDTH, "num_embeddings": 77}
_KANDINSKY = {
    "parts": {
        "prior_image_encoder": "CLIPVisionModelWithProjection",
        "prior_image_processor": "CLIPImageProcessorPil",
    },
    "prior_prior": _PRIOR,
    "movq": {"block_out_channels": (32, 32), "norm_type": "spatial", "vq_embed_dim": 4},
}


def _unet(embedding: str, projection: str) -> dict[str, Any]:
    """Kandinsky's U-Net, which learns its variance, and how it reads the embeddings of the first stage."""
    return {
        **_PLAIN,
        "out_channels": 8,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "resnet_time_scale_shift": "scale_shift",
        "transformer_layers_per_block": 1,
        "addition_embed_type": embedding,
        "encoder_hid_dim": WIDTH,
        "encoder_hid_dim_type": projection,
    }


def _multilingual() -> Any:
    config = MCLIPConfig(
        hidden_size=WIDTH, num_attention_heads=2, num_hidden_layers=1, intermediate_size=24, vocab_size=512,
        transformerDimSize=WIDTH, imageDimSize=WIDTH,
    )  # fmt: skip
    return randomized(MultilingualCLIP(config), seed=1)


def _joint() -> Any:
    """UniDiffuser's denoiser of pictures and texts together."""
    model = UniDiffuserModel(
        text_dim=WIDTH, clip_img_dim=WIDTH, num_text_tokens=77, num_attention_heads=2, attention_head_dim=8,
        in_channels=4, out_channels=4, num_layers=2, sample_size=8, patch_size=2, activation_fn="gelu",
        norm_type="layer_norm", norm_elementwise_affine=False, ff_final_dropout=True,
    )  # fmt: skip
    return halved(randomized(model, seed=2))


def _reader() -> Any:
    """UniDiffuser's decoder of texts; its output layer gets weights of its own, as diffusers cannot save tied ones."""
    model = UniDiffuserTextDecoder(77, WIDTH, WIDTH, 128, n_embd=WIDTH, n_layer=1, n_head=2)
    model.transformer.lm_head.weight = nn.Parameter(model.transformer.lm_head.weight.clone())
    return randomized(model, seed=1)


def _reader_tokenizer() -> Any:
    return transformers.GPT2Tokenizer(vocab={"<|endoftext|>": 0, "a": 1}, merges=[])


EARLIER: dict[str, Tiny] = {
    "StableUnCLIPPipeline": tiny(
        _STAGED,
        parts={"prior_scheduler": "DDPMScheduler", "image_noising_scheduler": "DDPMScheduler"},
        prior_scheduler={"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 5.0},
        image_normalizer={"embedding_dim": WIDTH},
        prior=_PRIOR,
        unet={**_PLAIN, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH},
    ),
    "KandinskyCombinedPipeline": tiny(
        _STAGED,
        unet=_unet("text_image", "text_image_proj"),
        **{
            **_KANDINSKY,
            "parts": {**_KANDINSKY["parts"], "text_encoder": _multilingual, "tokenizer": multilingual_tokenizer},
        },
    ),
    "KandinskyV22CombinedPipeline": tiny(_STAGED, unet=_unet("image", "image_proj"), **_KANDINSKY),
    "UniDiffuserPipeline": tiny(
        _GUIDED,
        parts={
            "image_encoder": "CLIPVisionModelWithProjection",
            "unet": _joint,
            "text_decoder": _reader,
            "text_tokenizer": _reader_tokenizer,
        },
    ),
    # Its second U-Net, of texts, is of a class that diffusers no longer exports, and this pipeline works without it.
    "VersatileDiffusionTextToImagePipeline": tiny(_GUIDED, parts={"text_unet": None}, image_unet=_PLAIN),
}
