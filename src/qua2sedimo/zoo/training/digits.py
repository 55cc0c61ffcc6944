"""Train digits-dit: a class-conditional diffusion transformer on handwritten digits.

    python -m qua2sedimo.zoo.training.digits --data DIR --work DIR --minutes 60

After an interruption, the same command resumes from WORK/checkpoint.pt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from qua2sedimo.zoo.training import data, flow_matching
from qua2sedimo.zoo.training.avatars import open_slowly


def denoiser(shared_time: bool = True) -> DiTTransformer2DModel:
    """The untrained transformer.

    All blocks share one timestep MLP during training, as in the original DiT; with ``shared_time=False`` every block
    has its own, as in diffusers.
    """
    transformer = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=64, num_layers=6, patch_size=4, sample_size=28,
        in_channels=1, out_channels=1, num_embeds_ada_norm=10,
    )  # fmt: skip
    open_slowly(transformer)
    shared = transformer.transformer_blocks[0].norm1.emb.timestep_embedder
    for block in transformer.transformer_blocks:
        if shared_time:
            block.norm1.emb.timestep_embedder = shared
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # no guidance, so no unconditional class
    return transformer


def fit(folder: Path, work: Path, budget: flow_matching.Budget, seed: int = 0) -> nn.Module:
    """Train within the budget and return the averaged model."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    digits = data.digits(folder)
    pictures = torch.from_numpy(digits.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(digits.labels)
    transformer = denoiser()
    batches = flow_matching.shuffled(data.HELD_OUT, len(pictures), budget.batch, chance)

    def loss() -> torch.Tensor:
        rows = next(batches)

        def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                predicted: torch.Tensor = transformer(
                    noisy, timestep=timestep, class_labels=labels[rows], return_dict=False
                )[0]
            return predicted

        return flow_matching.flow_loss(predict, pictures[rows].float() / 127.5 - 1, chance)

    return flow_matching.train(transformer, loss, chance, work, budget)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    budget = flow_matching.Budget(minutes=chosen.minutes, batch=chosen.batch, learning_rate=chosen.rate)
    fit(chosen.data, chosen.work, budget)


if __name__ == "__main__":
    main()
