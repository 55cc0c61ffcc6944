"""The picture grid as data URLs: tiny pictures exact, large ones scaled down and compressed to a limit."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.report.data import PictureRow

TINY = 64  # pixels; up to this, pictures are stored exactly and enlarged without smoothing
LIMIT = 2_000_000  # bytes all pictures of a page may take together


@dataclass(frozen=True)
class Cell:
    """One picture of the grid, ready for the page."""

    url: str
    caption: str
    alt: str
    tiny: bool


def picture_cells(rows: Sequence[PictureRow], captions: Sequence[str], limit: int = LIMIT) -> list[list[Cell]]:
    """A list of cells for each row; large pictures get as many pixels as ``limit`` bytes allow."""
    encoded: list[list[tuple[str, bool]]] = []
    for side in (512, 384, 320, 256, 192, 128, 96):
        encoded = [[_encoded(row.name, image, side) for image in row.images] for row in rows]
        if sum(len(url) for line in encoded for url, _ in line) <= limit:
            break
    return [
        [Cell(url, caption, f"{row.name}: {caption}", tiny) for (url, tiny), caption in zip(line, captions)]
        for row, line in zip(rows, encoded)
    ]


def image_of(name: str, image: np.ndarray) -> Image.Image:
    """A picture that the model ``name`` made. Raises ``Qua2SeDiMoError`` for other than uint8, H×W or H×W×3."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise Qua2SeDiMoError(
            f"report picture of '{name}': expected uint8, H×W or H×W×3, got {image.dtype} {image.shape}"
        )
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def _encoded(name: str, image: np.ndarray, side: int) -> tuple[str, bool]:
    picture = image_of(name, image)
    tiny = max(picture.size) <= TINY
    buffer = io.BytesIO()
    if tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.convert("RGB").save(buffer, "WEBP", quality=86)
    kind = "png" if tiny else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", tiny
