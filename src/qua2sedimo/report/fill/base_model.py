"""The model an export came from: its name on the hub and its licence, as its own files state them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from yaml import YAMLError

from qua2sedimo import zoo
from qua2sedimo.denoisers.hub_names import hub_name, is_hub_name, public_name
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.report.data import BaseModel
from qua2sedimo.study.settings import StudySettings


def place_of_base(export: Path, stated: str, study: Path | None = None) -> str:
    """The model that ``export`` came from, for :func:`base_model` and for loading it.

    The export states only a name (``stated``). If the model is a folder, its path is in the ``study`` that made the
    export, by default the one in whose folder the export lies. "" is unknown.
    """
    file = (study or export.resolve().parent) / "study.yaml"
    known = StudySettings.load(file).model if file.is_file() else stated
    return known if public_name(known) == stated else stated


def base_model(model: str) -> BaseModel:
    """Name and licence of ``model``: a zoo name, a pipeline folder, or a hub name; nothing is guessed."""
    if model in zoo.ENTRIES:
        licence, _, note = zoo.ENTRIES[model].licence.partition("; ")
        return BaseModel(model, None, licence.lower(), note=f"It comes with qua2sedimo; {note}")
    folder = Path(model).expanduser()
    if folder.is_dir():
        hub = hub_name(folder)
        return _stated(hub or folder.name, hub, folder / "README.md")
    if not is_hub_name(model):
        return BaseModel(Path(model).name)
    try:
        card = Path(hf_hub_download(model, "README.md"))
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError):
        return BaseModel(model, model)  # not cached, and the hub cannot be asked: its licence stays unknown
    return _stated(model, model, card)


def _stated(name: str, hub: str | None, card: Path) -> BaseModel:
    """The licence in the front matter of a model card, if there is one."""
    if not card.is_file():
        return BaseModel(name, hub)
    try:
        front = metadata_load(card) or {}
    except (ValueError, YAMLError) as error:
        raise Qua2SeDiMoError(
            f"{card}: its front matter cannot be read: {error}", "Correct it or move it away."
        ) from error
    found = {key: front.get(key) for key in ("license", "license_name", "license_link")}
    licence, licence_name, link = (value if isinstance(value, str) else "" for value in found.values())
    if link and "://" not in link:
        link = f"https://huggingface.co/{hub}/blob/main/{link}" if hub else ""
    return BaseModel(name, hub, licence, licence_name, link)
