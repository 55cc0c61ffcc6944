"""Remove local paths from the configuration files of an export, so that it can be published."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath
from typing import Any

from qua2sedimo.denoisers.hub_names import is_hub_name
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_json

#: Suffixes of configuration keys in which diffusers and transformers record where something was loaded from.
_PATH_KEYS = ("name_or_path", "_file", "_path", "_dir")


def forget_paths(folder: Path) -> None:
    """Remove local paths from all configuration files of the pipeline in ``folder``; hub names are kept.

    Tokenizer vocabularies are not changed, their entries are text. Raises :class:`Qua2SeDiMoError` if a configuration
    file is not valid JSON.
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
    return {key: _without_paths(value) for key, value in entry.items() if not _is_local_path(key, value)}


def _is_local_path(key: str, value: Any) -> bool:
    """Whether a configuration entry is a local path."""
    if not isinstance(value, str) or not key.endswith(_PATH_KEYS) or is_hub_name(value):
        return False
    path = Path(value).expanduser()
    return key.endswith("name_or_path") or path.is_absolute() or path.exists() or bool(PureWindowsPath(value).drive)
