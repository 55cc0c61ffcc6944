"""Train avatars-pixart: a PixArt transformer and its one-layer text encoder, jointly, on captioned avatars.

    python -m qua2sedimo.zoo.training.avatars --data DIR --work DIR --minutes 90

avatars_data.mjs makes the data. After an interruption, the same command resumes from WORK/checkpoint.pt. export.py
writes the pipeline of the latest checkpoint.
"""

from __future__ import annotations

from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from qua2sedimo.zoo.captions import vocabulary
from qua2sedimo.zoo.training import flow_matching
from qua2sedimo.zoo.training.captioned import command

WORDS = 128


class TextToImage(nn.Module):
    """Text encoder and denoiser, which are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(vocabulary()) + 3, d_model=WORDS, d_kv=32, d_ff=256, num_layers=1, num_heads=4,
                relative_attention_num_buckets=16, relative_attention_max_distance=32, dropout_rate=0.0,
                pad_token_id=0, eos_token_id=1,
            )
        )  # fmt: skip
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=4, attention_head_dim=64, num_layers=6, patch_size=2, sample_size=16,
            in_channels=3, out_channels=3, cross_attention_dim=256, norm_type="ada_norm_single",
            use_additional_conditions=False, caption_channels=WORDS, attention_bias=True,
        )  # fmt: skip
        open_slowly(self.transformer)

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The predicted flow, [N, 3, 16, 16]."""
        words = self.text_encoder(tokens, attention_mask=mask)[0]
        flow_of_noise: Tensor = self.transformer(
            noisy,
            encoder_hidden_states=words,
            encoder_attention_mask=mask,
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return flow_of_noise


def open_slowly(transformer: nn.Module) -> None:
    """Initialise as DiT does: Xavier for linear layers, zero for the output and the ends of residual branches."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith(("timestep_embedder.linear_1", "timestep_embedder.linear_2", "adaln_single.linear")):
            nn.init.normal_(module.weight, std=0.02)
        if name.endswith(("proj_out", "proj_out_2", "attn2.to_out.0", "norm1.linear", "proj_out_1")):
            nn.init.zeros_(module.weight)


if __name__ == "__main__":
    command(TextToImage, __doc__, flow_matching.Budget(minutes=90), bfloat16=True)
