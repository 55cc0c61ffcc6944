"""Names of models for published files: the hub name or the folder's name, never a local path."""

from __future__ import annotations

import re
from pathlib import Path

from qua2sedimo import zoo
from qua2sedimo.formats.files import read_object

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")


def is_hub_name(text: object) -> bool:
    """Whether the text has the form OWNER/NAME and is not a local path."""
    return isinstance(text, str) and _HUB_NAME.fullmatch(text) is not None and not Path(text).exists()


def hub_name(folder: Path) -> str | None:
    """The hub name of a local folder, from its path in the hub's cache or ``_name_or_path`` in model_index.json."""
    cached = _CACHED.search(f"{folder.resolve().as_posix()}/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    index = folder / "model_index.json"
    stated = read_object(index).get("_name_or_path") if index.is_file() else None
    return stated if is_hub_name(stated) else None


def public_name(model: str) -> str:
    """A zoo or hub name unchanged; for a folder, its hub name if known, else the folder's own name."""
    folder = Path(model).expanduser()
    if model in zoo.ENTRIES or is_hub_name(model):
        return model
    return (hub_name(folder) if folder.is_dir() else None) or folder.resolve().name
