"""What a model is called in files that are published: its name on the hub or of its folder, never where it lay."""

from __future__ import annotations

import re
from pathlib import Path

from qua2sedimo import zoo
from qua2sedimo.formats.files import read_json

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")


def is_hub_name(text: object) -> bool:
    """Whether it has the form OWNER/NAME and is not a folder here."""
    return isinstance(text, str) and _HUB_NAME.fullmatch(text) is not None and not Path(text).exists()


def hub_name(folder: Path) -> str | None:
    """Where a folder came from, if it says so: a snapshot of the hub's cache, or an older diffusers' model_index."""
    cached = _CACHED.search(f"{folder.resolve().as_posix()}/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    index = folder / "model_index.json"
    stated = read_json(index).get("_name_or_path") if index.is_file() else None
    return stated if is_hub_name(stated) else None


def public_name(model: str) -> str:
    """The name of a zoo model or one on the hub as it is, of a folder that on the hub if it states one, or its own."""
    folder = Path(model).expanduser()
    if model in zoo.ENTRIES or is_hub_name(model):
        return model
    return (hub_name(folder) if folder.is_dir() else None) or folder.resolve().name
