"""Small classifiers that score how well a zoo picture matches its input, as a CLIP score does, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from qua2sedimo.zoo.captions import ATTRIBUTES, parse


class Judge(nn.Module):
    """A convolutional classifier with one head per attribute.

    Shapes: pictures [n, channels, side, side] in −1 to 1 → logits [n, values] for each attribute.
    """

    def __init__(self, channels: int, answers: Sequence[int]) -> None:
        super().__init__()
        widths = (channels, 32, 64, 96)
        stages = [
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(), nn.AvgPool2d(2))
            for a, b in pairwise(widths)
        ]
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 96, 128), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(128, count) for count in answers)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        seen = self.body(pictures)
        return [head(seen) for head in self.heads]


def questions(pictures: str) -> tuple[int, list[int]]:
    """(picture channels, number of values of each attribute) of a data set, "avatars" or "digits"."""
    return (3, [len(values) for values in ATTRIBUTES.values()]) if pictures == "avatars" else (1, [10])


@lru_cache(maxsize=4)
def load_judge(path: Path, pictures: str) -> Judge:
    judge = Judge(*questions(pictures))
    judge.load_state_dict({key: weight.float() for key, weight in load_file(path).items()})
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def answers(judge: Judge, images: np.ndarray) -> list[np.ndarray]:
    """The most likely value of each attribute for uint8 images [n, side, side, channels]: int [n] each."""
    pictures = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return [logits.argmax(dim=1).numpy() for logits in judge(pictures)]


def score(path: Path, pictures: str, images: np.ndarray, inputs: Sequence[str | int]) -> np.ndarray:
    """Share of the attributes in each input that its picture shows, float [n] from 0 to 1; 1 if it names none."""
    found = answers(load_judge(path, pictures), images)
    if pictures != "avatars":
        return (found[0] == np.array(inputs)).astype(np.float64)
    shares = []
    for row, prompt in enumerate(inputs):
        asked = parse(str(prompt))
        right = [ATTRIBUTES[key][found[at][row]] == asked[key] for at, key in enumerate(ATTRIBUTES) if key in asked]
        shares.append(np.mean(right) if right else 1.0)
    return np.array(shares)
