"""Where the weights are of a model that `from_pretrained` was given as a folder or by its name on the hub."""

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
    """The folder with the weights of the model that diffusers is asked for, of which ``known`` are the arguments.

    Those of a name on the hub are downloaded unless they are in its cache: diffusers would do so next, and finds them
    there. None if they cannot be had, which diffusers meets too, and tells; or if they are to be downloaded anew.
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
