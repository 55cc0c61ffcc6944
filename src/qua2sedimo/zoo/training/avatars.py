"""Trains avatars-pixart: a PixArt transformer and its one-layer text encoder, jointly, on captioned avatars.

    python -m qua2sedimo.zoo.training.avatars --data DIR --work DIR --minutes 90

Without SVG data the run stops with the missing file's name (see avatars_data.mjs). Killed, it resumes from
WORK/checkpoint.pt; export.py writes the pipeline of the newest checkpoint.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from qua2sedimo.zoo.captions import caption, vocabulary
from qua2sedimo.zoo.training import data, flow

TOKENS = 24
WORDS = 128


def tokenizer() -> PreTrainedTokenizerFast:
    """Words, lower-cased, split at spaces and commas; </s> at the end."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s,.;]+"), behavior="removed")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )


class Painter(nn.Module):
    """The two trained parts together."""

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
    """Initialise as DiT does: linear layers Xavier, the output zero, so that training starts calmly."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith(("timestep_embedder.linear_1", "timestep_embedder.linear_2", "adaln_single.linear")):
            nn.init.normal_(module.weight, std=0.02)
        if name.endswith(("proj_out", "proj_out_2", "attn2.to_out.0", "norm1.linear", "proj_out_1")):
            nn.init.zeros_(module.weight)


def fit(folder: Path, work: Path, budget: flow.Budget, seed: int = 0) -> nn.Module:
    """Train within the budget and return the averaged model."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    avatars = data.avatars(folder)
    pictures = torch.from_numpy(avatars.images).permute(0, 3, 1, 2)
    shown = [avatars.attributes(at) for at in range(len(pictures))]
    words, painter = tokenizer(), Painter()
    batches = flow.shuffled(data.HELD_OUT, len(pictures), budget.batch, chance)

    def loss() -> Tensor:
        rows = next(batches)
        dice = random.Random(int(torch.randint(2**31, (1,), generator=chance)))
        said = words(
            [caption(shown[at], dice) for at in rows.tolist()], padding="max_length", max_length=TOKENS,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        clean = pictures[rows].float() / 127.5 - 1

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return painter(noisy, timestep, said["input_ids"], said["attention_mask"])

        return flow.flow_loss(predict, clean, chance)

    return flow.train(painter, loss, chance, work, budget)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    budget = flow.Budget(
        minutes=chosen.minutes, batch=chosen.batch, learning_rate=chosen.rate, optimizer=chosen.optimizer
    )
    fit(chosen.data, chosen.work, budget)


if __name__ == "__main__":
    main()
