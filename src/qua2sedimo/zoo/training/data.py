"""The training data: avatars from JSON lines with SVG, digits from a binary file, both cached as .npz.

    python -m qua2sedimo.zoo.training.data --data DIR

reads DIR/avatars.jsonl and DIR/digits.bin (see avatars_data.mjs and digits_data.mjs) and writes
DIR/avatars.npz and DIR/digits.npz. The first ``HELD_OUT`` pictures of each are not used for training.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qua2sedimo.zoo.captions import ATTRIBUTES, HIDDEN
from qua2sedimo.zoo.training.svg import render

HELD_OUT = 1000

_HAIR = {
    "cab188": "blond", "a78961": "sandy", "83623b": "brown", "603a14": "brown", "603015": "brown",
    "611c17": "auburn", "612616": "auburn", "28150a": "black", "009bbd": "blue", "bd1700": "red",
    "91cb15": "green",
}  # fmt: skip
_TOP = {
    "5bc0de": "sky", "428bca": "blue", "03396c": "navy", "88d8b0": "mint", "44c585": "green",
    "00b159": "green", "ff6f69": "coral", "d11141": "red", "ae0001": "red", "ffeead": "cream",
    "ffd969": "yellow", "ffc425": "yellow",
}  # fmt: skip
_HAT = {
    "2e1e05": "brown", "2663a3": "blue", "989789": "grey", "3d8a6b": "green", "cc6192": "pink",
    "614f8a": "purple", "a62116": "red",
}  # fmt: skip
_SKIN = {
    "ffdbac": "pale", "f5cfa0": "pale", "eac393": "fair", "e0b687": "fair", "cb9e6e": "tan",
    "b68655": "tan", "a26d3d": "dark", "8d5524": "dark",
}  # fmt: skip
_BACKGROUND = {
    "f4f4ee": "white", "b4b9c2": "grey", "9fc5f0": "blue", "a9dba2": "green", "f7e08b": "yellow",
    "f5b3cc": "pink", "c3aeea": "purple", "f2b071": "orange", "2a2d36": "black",
}  # fmt: skip


@dataclass(frozen=True)
class Avatars:
    """Pictures uint8 [N, 16, 16, 3] and the index of each attribute's value, int8 [N, attributes], −1 if hidden."""

    images: NDArray[np.uint8]
    values: NDArray[np.int8]

    def attributes(self, at: int) -> dict[str, str]:
        """The visible attributes of picture ``at``, by name."""
        row = zip(ATTRIBUTES.items(), self.values[at], strict=True)
        return {key: names[index] for (key, names), index in row if index != HIDDEN}


@dataclass(frozen=True)
class Digits:
    """Pictures uint8 [N, 28, 28, 1] and labels int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def avatars(folder: Path) -> Avatars:
    """Load the avatars from a data folder; they are rasterised at first use."""
    cache = folder / "avatars.npz"
    if not cache.exists():
        lines = (folder / "avatars.jsonl").read_text().splitlines()
        pictures = [json.loads(line) for line in lines]
        images = np.stack([render(picture["svg"]) for picture in pictures])
        values = np.array(
            [_values(picture["extra"], image) for picture, image in zip(pictures, images, strict=True)],
            dtype=np.int8,
        )
        np.savez_compressed(cache, images=images, values=values)
    with np.load(cache) as stored:
        return Avatars(stored["images"], stored["values"])


def digits(folder: Path) -> Digits:
    """Load the digits from a data folder, shuffled with a fixed seed."""
    cache = folder / "digits.npz"
    if not cache.exists():
        rows = np.fromfile(folder / "digits.bin", dtype=np.uint8).reshape(-1, 1 + 28 * 28)
        rows = rows[np.random.default_rng(0).permutation(len(rows))]
        np.savez_compressed(cache, images=rows[:, 1:].reshape(-1, 28, 28, 1), labels=rows[:, 0].astype(np.int64))
    with np.load(cache) as stored:
        return Digits(stored["images"], stored["labels"])


def _values(extra: dict[str, Any], image: NDArray[np.uint8]) -> list[int]:
    def colour(key: str) -> str:
        return str(extra[key]).lstrip("#").lower()

    red_green_blue = [int(colour("hairColor")[at : at + 2], 16) for at in (0, 2, 4)]
    hair_is_seen = int((image == red_green_blue).all(axis=-1).sum()) >= 3
    glasses = extra.get("glasses", "none")
    named = {
        "hair length": str(extra["hair"]).rstrip("0123456789") if hair_is_seen else None,
        "hair colour": _HAIR[colour("hairColor")] if hair_is_seen else None,
        "glasses": glasses.rstrip("0123456789"),
        "top": _TOP[colour("clothingColor")],
        "hat": _HAT[colour("hatColor")] if extra.get("hat") else "none",
        "beard": "beard" if extra.get("beard") else "none",
        "skin": _SKIN[colour("skinColor")],
        "mouth": "smile" if str(extra["mouth"]).startswith("happy") else "frown",
        "background": _BACKGROUND[colour("primaryBackgroundColor")],
    }
    return [HIDDEN if (name := named[key]) is None else names.index(name) for key, names in ATTRIBUTES.items()]


def main() -> None:
    """Rasterise both data sets."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    print("avatars", avatars(folder).images.shape)
    print("digits", digits(folder).images.shape)


if __name__ == "__main__":
    main()
