"""Shared by the two avatar models: tokenizer, batches, command line."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from qua2sedimo.zoo.captions import caption, vocabulary
from qua2sedimo.zoo.training import data, flow_matching

TOKENS = 24


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for lower-case words, split at spaces and punctuation, with </s> at the end."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s,.;]+"), behavior="removed")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )


def fit(
    make: Callable[[], nn.Module], folder: Path, work: Path, budget: flow_matching.Budget, bfloat16: bool, seed: int = 0
) -> nn.Module:
    """Train the model that ``make`` builds within the budget and return its moving average.

    The model maps (noisy [N, 3, 16, 16], timestep [N], tokens int64 [N, 24], mask [N, 24]) to the flow.
    """
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    avatars = data.avatars(folder)
    pictures = torch.from_numpy(avatars.images).permute(0, 3, 1, 2)
    shown = [avatars.attributes(at) for at in range(len(pictures))]
    words, model = tokenizer(), make()
    batches = flow_matching.shuffled(data.HELD_OUT, len(pictures), budget.batch, chance)

    def loss() -> Tensor:
        rows = next(batches)
        dice = random.Random(int(torch.randint(2**31, (1,), generator=chance)))
        said = words(
            [caption(shown[at], dice) for at in rows.tolist()], padding="max_length", max_length=TOKENS,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        clean = pictures[rows].float() / 127.5 - 1

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                predicted: Tensor = model(noisy, timestep, said["input_ids"], said["attention_mask"])
            return predicted

        return flow_matching.flow_loss(predict, clean, chance)

    return flow_matching.train(model, loss, chance, work, budget)


def command(make: Callable[[], nn.Module], about: str | None, usual: flow_matching.Budget, bfloat16: bool) -> None:
    """Train from the command line; ``usual`` has the defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--rate", type=float, default=usual.learning_rate)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default=usual.optimizer)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    budget = flow_matching.Budget(
        minutes=chosen.minutes, batch=chosen.batch, learning_rate=chosen.rate, optimizer=chosen.optimizer,
        average=usual.average,
    )  # fmt: skip
    fit(make, chosen.data, chosen.work, budget, bfloat16)
