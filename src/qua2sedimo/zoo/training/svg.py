"""Rasterise pixel-art SVG: rectilinear paths with integer coordinates, opacity, groups and alpha masks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_TAG = re.compile(r"<(/?)(\w+)([^>]*?)(/?)>")
_ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
_STEP = re.compile(r"([MmHhVvLlZz])|(-?\d*\.?\d+)")


def render(svg: str, size: int = 16) -> NDArray[np.uint8]:
    """Render an SVG of ``size`` × ``size`` units at one pixel per unit: uint8 [size, size, 3].

    All masks are applied as alpha masks, whatever their declared type.
    """
    canvas = np.zeros((size, size, 3))
    masks: dict[str, NDArray[np.float64]] = {}
    fills: list[str] = []
    clips: list[NDArray[np.float64]] = [np.ones((size, size))]
    inside = ""
    for closing, tag, text in _tags(svg):
        if tag == "g":
            if closing:
                fills.pop(), clips.pop()
                continue
            values = dict(_ATTRIBUTE.findall(text))
            fills.append(values.get("fill", fills[-1] if fills else "none"))
            reference = values.get("mask", "")[5:-1]
            clips.append(clips[-1] * masks.get(reference, 1.0))
        elif tag == "mask":
            inside = "" if closing else dict(_ATTRIBUTE.findall(text))["id"]
            if inside:
                masks[inside] = np.zeros((size, size))
        elif tag in ("path", "rect"):
            values = dict(_ATTRIBUTE.findall(text))
            if tag == "rect":
                values["d"] = f"M{values['x']} {values['y']}h{values['width']}v{values['height']}h-{values['width']}z"
            cover = coverage(values["d"], values.get("fill-rule", "nonzero"), size)
            alpha = cover * float(values.get("fill-opacity", 1)) * float(values.get("opacity", 1))
            if inside:
                masks[inside] = np.maximum(masks[inside], alpha)
                continue
            alpha = (alpha * clips[-1])[..., None]
            canvas = canvas * (1 - alpha) + alpha * _colour(values.get("fill", fills[-1] if fills else "none"))
    return np.round(canvas).astype(np.uint8)


@lru_cache(maxsize=4096)
def coverage(path: str, rule: str, size: int) -> NDArray[np.float64]:
    """1.0 where a pixel's centre is inside the path, else 0.0: [size, size]; "nonzero" or "evenodd"."""
    winding = np.zeros((size, size), dtype=int)
    rows = np.arange(size) + 0.5
    columns = np.arange(size) + 0.5
    for ring in _rings(path):
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            if y0 == y1:
                continue
            crossed = (rows > min(y0, y1)) & (rows < max(y0, y1))
            x = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
            right = columns[None, :] > x[:, None]
            winding += np.sign(y1 - y0).astype(int) * (crossed[:, None] & right)
    inside = winding % 2 != 0 if rule == "evenodd" else winding != 0
    return inside.astype(float)


def _tags(svg: str) -> Iterator[tuple[bool, str, str]]:
    for closing, tag, text, _ in _TAG.findall(svg):
        yield bool(closing), tag, text


def _colour(text: str) -> NDArray[np.float64]:
    digits = text.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    return np.array([int(digits[at : at + 2], 16) for at in (0, 2, 4)], dtype=float)


def _rings(path: str) -> list[list[tuple[float, float]]]:
    rings: list[list[tuple[float, float]]] = []
    command, numbers, x, y = "M", [], 0.0, 0.0
    for letter, number in _STEP.findall(path):
        if letter:
            command = letter
            if letter in "Zz" and rings:
                x, y = rings[-1][0]
            continue
        numbers.append(float(number))
        if command in "MmLl":
            if len(numbers) < 2:
                continue
            dx, dy = numbers
            x, y = (dx, dy) if command.isupper() else (x + dx, y + dy)
        elif command in "Hh":
            x = numbers[0] if command == "H" else x + numbers[0]
        else:
            y = numbers[0] if command == "V" else y + numbers[0]
        numbers = []
        if command in "Mm":
            rings.append([])
            command = "L" if command == "M" else "l"
        rings[-1].append((x, y))
    return rings
