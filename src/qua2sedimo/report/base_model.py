"""What is known of the model an export came from: its name on the hub and its licence, as its own files state them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from yaml import YAMLError

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.files import read_json

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")


@dataclass(frozen=True)
class BaseModel:
    """``name``: that on the hub, or of its folder; ``hub``: its name on the hub. None and "" are unknown.

    ``licence`` is the hub's word for it (``apache-2.0``, ``other``), ``licence_name`` and ``licence_link`` go with
    ``other``; ``note`` is what else was said.
    """

    name: str
    hub: str | None = None
    licence: str = ""
    licence_name: str = ""
    licence_link: str = ""
    note: str = ""


def base_model(model: str) -> BaseModel:
    """What can be told of ``model``: a zoo name, a pipeline folder, or a hub name; nothing is guessed."""
    if model in zoo.ENTRIES:
        licence, _, note = zoo.ENTRIES[model].licence.partition("; ")
        return BaseModel(model, None, licence.lower(), note=f"It comes with qua2sedimo; {note}")
    folder = Path(model).expanduser()
    if folder.is_dir():
        hub = _hub_name(folder)
        return _stated(hub or folder.name, hub, folder / "README.md")
    if not _HUB_NAME.fullmatch(model):
        return BaseModel(Path(model).name)
    try:
        card = Path(hf_hub_download(model, "README.md"))
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError):
        return BaseModel(model, model)  # not cached, and the hub cannot be asked: its licence stays unknown
    return _stated(model, model, card)


def _hub_name(folder: Path) -> str | None:
    """Where a folder came from, if it says so: a snapshot of the hub's cache, or an older diffusers' model_index."""
    cached = _CACHED.search(f"{folder.resolve().as_posix()}/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    index = folder / "model_index.json"
    stated = read_json(index).get("_name_or_path") if index.is_file() else None
    return stated if isinstance(stated, str) and _HUB_NAME.fullmatch(stated) and not Path(stated).exists() else None


def _stated(name: str, hub: str | None, card: Path) -> BaseModel:
    """The licence in the front matter of a model card, if there is one."""
    if not card.is_file():
        return BaseModel(name, hub)
    try:
        front = metadata_load(card) or {}
    except (ValueError, YAMLError) as error:
        raise Qua2SeDiMoError(f"{card}: its front matter cannot be read: {error}", "Mend or remove it.") from error
    found = {key: front.get(key) for key in ("license", "license_name", "license_link")}
    licence, licence_name, link = (value if isinstance(value, str) else "" for value in found.values())
    if link and "://" not in link:
        link = f"https://huggingface.co/{hub}/blob/main/{link}" if hub else ""
    return BaseModel(name, hub, licence, licence_name, link)
