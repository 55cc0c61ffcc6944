"""An identity autoencoder, with which latent-diffusion pipelines generate pixels directly."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


class PixelAutoencoder(ModelMixin, ConfigMixin):
    """Takes the place of ``AutoencoderKL`` in a pipeline; its latents are the pixels, [N, C, H, W] in −1 to 1.

    ``block_out_channels`` has one entry, from which pipelines derive a downscaling factor of 1.
    """

    unit: Tensor

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 3,
        block_out_channels: tuple[int, ...] = (1,),
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        # A model without any tensor has no dtype, no device and no weights to save.
        self.register_buffer("unit", torch.ones(1))

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The picture itself, as a distribution with zero variance."""
        posterior = DiagonalGaussianDistribution(torch.cat([x, torch.full_like(x, -30.0)], dim=1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """The latents themselves."""
        return DecoderOutput(sample=z) if return_dict else (z,)
