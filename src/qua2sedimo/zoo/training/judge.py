"""Train the judges: small classifiers for generated pictures, trained on the same data as the denoisers.

    python -m qua2sedimo.zoo.training.judge avatars --data DIR [--epochs 4]

prints the accuracy for each attribute on held-out pictures and writes judge.safetensors and reference.png, which all
models of the data set share.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from qua2sedimo.formats.files import write_via
from qua2sedimo.zoo import ENTRIES
from qua2sedimo.zoo.captions import ATTRIBUTES
from qua2sedimo.zoo.judge import Judge, answers, questions
from qua2sedimo.zoo.training import data

REFERENCES = 500  # of the held-out pictures, shipped as the reference of set metrics


def examples(pictures: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(pictures uint8 [n, side, side, channels], values int64 [n, attributes], −1 if hidden)."""
    if pictures == "avatars":
        avatars = data.avatars(folder)
        return avatars.images, avatars.values.astype(np.int64)
    digits = data.digits(folder)
    return digits.images, digits.labels[:, None]


def augmented(pictures: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Add noise and vary the contrast, because generated pictures are less clean than real ones."""
    noise = torch.randn(pictures.shape, generator=chance) * 0.15 * torch.rand(len(pictures), 1, 1, 1, generator=chance)
    contrast = 0.9 + 0.2 * torch.rand(len(pictures), 1, 1, 1, generator=chance)
    return pictures * contrast + noise


def sheet(images: np.ndarray, columns: int = 25) -> Image.Image:
    """Pictures uint8 [n, side, side, channels] in one grid."""
    n, side, _, channels = images.shape
    tiles = images.reshape(n // columns, columns, side, side, channels).swapaxes(1, 2)
    return Image.fromarray(tiles.reshape(n // columns * side, columns * side, channels).squeeze())


def fit(picture_set: str, images: np.ndarray, targets: np.ndarray, epochs: int, seed: int = 0) -> Judge:
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    judge = Judge(*questions(picture_set))
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2)
    truth = torch.from_numpy(targets)
    steps = epochs * (len(images) // 128)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps + 1)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=chance).split(128):
            if len(rows) < 128:
                continue
            logits = judge(augmented(pictures[rows].float() / 127.5 - 1, chance))
            loss = torch.stack(
                [functional.cross_entropy(x, truth[rows, q], ignore_index=-1) for q, x in enumerate(logits)]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def main() -> None:
    """Train a judge, print its accuracy, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", choices=sorted({entry.pictures for entry in ENTRIES.values()}))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    images, targets = examples(chosen.pictures, chosen.data)
    judge = fit(chosen.pictures, images[data.HELD_OUT :], targets[data.HELD_OUT :], chosen.epochs)
    names = list(ATTRIBUTES) if chosen.pictures == "avatars" else ["digit"]
    for question, found in enumerate(answers(judge, images[: data.HELD_OUT])):
        shown = targets[: data.HELD_OUT, question]
        print(f"{names[question]:12s} {100 * (found == shown)[shown >= 0].mean():.1f} %")
    weights = {key: weight.half().contiguous() for key, weight in judge.state_dict().items()}
    out = next(entry.set_folder for entry in ENTRIES.values() if entry.pictures == chosen.pictures)
    write_via(out / "judge.safetensors", partial(save_file, weights))
    write_via(out / "reference.png", partial(sheet(images[:REFERENCES]).save, format="PNG", optimize=True))


if __name__ == "__main__":
    main()
