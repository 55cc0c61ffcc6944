"""Pictures of a model as image files: tiny ones enlarged without smoothing, large ones scaled down."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from PIL import Image

from qua2sedimo.errors import Qua2SeDiMoError


def image_of(name: str, pixels: np.ndarray) -> Image.Image:
    """A picture of the model ``name``. Raises ``Qua2SeDiMoError`` for other than uint8, H×W or H×W×3."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise Qua2SeDiMoError(
            f"report picture of '{name}': expected uint8, H×W or H×W×3, got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def fitted(name: str, pixels: np.ndarray, least: int, most: int) -> Image.Image:
    """A picture whose longer side has at least ``least`` pixels, every pixel enlarged equally, and at most ``most``."""
    picture = image_of(name, pixels)
    larger = min(-(-least // max(picture.size)), max(1, most // max(picture.size)))
    if larger > 1:
        picture = picture.resize((picture.width * larger, picture.height * larger), Image.Resampling.NEAREST)
    picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    return picture


def data_url(picture: Image.Image, form: Literal["png", "webp"] = "png") -> str:
    """A picture as a URL that holds it."""
    buffer = io.BytesIO()
    if form == "png":
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(buffer, "WEBP", quality=86)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
