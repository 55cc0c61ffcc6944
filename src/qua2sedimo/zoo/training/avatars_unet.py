"""Train avatars-unet: a U-Net and its one-layer CLIP text encoder, jointly, on captioned avatars.

    python -m qua2sedimo.zoo.training.avatars_unet --data DIR --work DIR --minutes 46

Data, captions and tokenizer are those of avatars-pixart. After an interruption, the same command resumes from
WORK/checkpoint.pt.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from qua2sedimo.zoo.captions import vocabulary
from qua2sedimo.zoo.training import flow_matching
from qua2sedimo.zoo.training.captioned import TOKENS, command

WORDS = 128


class TextToImage(nn.Module):
    """Text encoder and denoiser, which are trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary()) + 3, hidden_size=WORDS, intermediate_size=2 * WORDS,
                num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=WORDS,
                pad_token_id=0, bos_token_id=1, eos_token_id=1,
            )
        )  # fmt: skip
        # As in Stable Diffusion, the lowest resolution has attention in its middle block only.
        self.unet = UNet2DConditionModel(
            sample_size=16, in_channels=3, out_channels=3, block_out_channels=(64, 128, 160), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WORDS, attention_head_dim=4, norm_num_groups=32,
        )  # fmt: skip
        close_branches(self.unet)
        self.unet.to(memory_format=torch.channels_last)  # a little faster on a CPU; the weights are the same

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The predicted flow, [N, 3, 16, 16].

        The mask is not needed: text attention is causal, so words do not depend on the padding, and
        ``StableDiffusionPipeline`` passes the padding to the U-Net too.
        """
        words = self.text_encoder(tokens)[0]
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        flow_of_noise: Tensor = self.unet(noisy, timestep, encoder_hidden_states=words, return_dict=False)[0]
        return flow_of_noise


def close_branches(unet: nn.Module) -> None:
    """Initialise the last layer of each residual branch and the output layer to zero."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")) and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


if __name__ == "__main__":
    # bfloat16 is much slower in convolutions on CPUs that only emulate it.
    command(TextToImage, __doc__, flow_matching.Budget(minutes=46, batch=32, average=0.997), bfloat16=False)
