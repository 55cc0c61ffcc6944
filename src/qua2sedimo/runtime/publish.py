"""An export can be published: its files tell nothing of where on this machine their models lay."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath
from typing import Any

from qua2sedimo.denoisers.hub_names import is_hub_name
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_json

#: Ends of the keys under which diffusers and transformers keep where something was loaded from.
_PLACES = ("name_or_path", "_file", "_path", "_dir")


def forget_paths(folder: Path) -> None:
    """Take local paths out of the configs in ``folder`` (of its pipeline, models, tokenizers); hub names stay.

    A tokenizer's vocabulary is none: what is written there is text that it knows. Raises :class:`Qua2SeDiMoError` on a
    config that is no JSON.
    """
    for file in [*folder.rglob("*config.json"), *folder.glob("model_index.json")]:
        try:
            content = json.loads(file.read_text())
        except ValueError as error:
            raise Qua2SeDiMoError(f"{file.name} was saved damaged: {error}", "Save the pipeline again.") from error
        kept = _without_paths(content)
        if kept != content:
            write_json(file, kept)


def _without_paths(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_without_paths(one) for one in entry]
    if not isinstance(entry, dict):
        return entry
    return {key: _without_paths(value) for key, value in entry.items() if not _is_place(key, value)}


def _is_place(key: str, value: Any) -> bool:
    """Whether an entry says where a file or folder lies, or lay, on a machine."""
    if not isinstance(value, str) or not key.endswith(_PLACES) or is_hub_name(value):
        return False
    path = Path(value).expanduser()
    return key.endswith("name_or_path") or path.is_absolute() or path.exists() or bool(PureWindowsPath(value).drive)
