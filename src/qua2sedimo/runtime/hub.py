"""Locate the weight files of a model that `from_pretrained` was given as a folder or a hub name."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import indexed_files, weight_names


def model_folder(known: Mapping[str, Any]) -> Path | None:
    """The folder with the weight files of the model that diffusers is loading; ``known`` are its arguments.

    For a hub name, files that are not cached are downloaded; diffusers then finds them in the cache. Returns None if
    that fails, in which case diffusers reports the error itself, and with ``force_download``.
    """
    name, within = str(known.get("pretrained_model_name_or_path")), known.get("subfolder") or ""
    if Path(name).is_dir():
        return Path(name, within)
    if known.get("force_download"):
        return None
    given: dict[str, Any] = {key: known.get(key) for key in ("cache_dir", "revision", "token")}
    given["local_files_only"] = bool(known.get("local_files_only"))
    index, single = (posixpath.join(within, file) for file in weight_names(known.get("variant")))
    try:
        try:
            found = Path(hf_hub_download(name, index, **given))
        except EntryNotFoundError:
            return Path(hf_hub_download(name, single, **given)).parent
        shards = [posixpath.join(within, file.name) for file in indexed_files(found)]
        snapshot_download(name, allow_patterns=shards, **given)
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError, OSError, Qua2SeDiMoError):
        return None
    return found.parent
