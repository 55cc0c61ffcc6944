"""The picture grid of the page: tiny pictures exact, large ones scaled down and compressed to a limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qua2sedimo.report.data import PictureRow
from qua2sedimo.report.pictures import data_url, fitted

TINY = 64  # pixels; up to this, pictures are stored exactly and enlarged by the browser without smoothing
LIMIT = 2_000_000  # bytes of all pictures of a page together


def picture_cells(rows: Sequence[PictureRow], limit: int = LIMIT) -> list[list[tuple[str, bool]]]:
    """For each row its pictures as data URLs, and whether they are tiny; all together at most ``limit`` bytes."""
    made: list[list[tuple[str, bool]]] = []
    for side in (512, 384, 320, 256, 192, 128, 96):
        made = [[_cell(row.name, pixels, side) for pixels in row.images] for row in rows]
        if sum(len(url) for line in made for url, _ in line) <= limit:
            break
    return made


def _cell(name: str, pixels: np.ndarray, side: int) -> tuple[str, bool]:
    tiny = max(pixels.shape[:2]) <= TINY
    return data_url(fitted(name, pixels, 0, side), "png" if tiny else "webp"), tiny
