"""Full-precision pictures, made once for a study: kept in its folder, and read by every worker and every later run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.checksums import check_sums, checksum, checksum_metadata
from qua2sedimo.formats.files import write_via
from qua2sedimo.images.pictures import Pictures

_KEY = "qua2sedimo.key"


class ReferenceStore:
    """A folder with a file for each range of images: ``0-16.safetensors`` holds images 0 to 15, as float32.

    ``key`` names all that decides the pictures. A file of another key, or a damaged one, is made anew.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key

    def __call__(self, images: range, latents: bool, make: Callable[[], Pictures]) -> Pictures:
        """These images, and their latents if asked for: read, or else made and kept."""
        found = self.find(images, latents)
        if found is None:
            found = make()
            self._write(self._path(images), found)
        return found

    def find(self, images: range, latents: bool = False) -> Pictures | None:
        """What is kept of these images; None if that is nothing, not whole, or of another key."""
        path = self._path(images)
        try:
            check_sums(path)
            with safe_open(path, "np") as handle:
                if (handle.metadata() or {}).get(_KEY) != self._key:
                    return None
                kept: dict[str, np.ndarray] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (Qua2SeDiMoError, OSError, SafetensorError):
            return None  # it can be made again, and will be
        if "images" not in kept or len(kept["images"]) != len(images) or (latents and "latents" not in kept):
            return None
        return Pictures(kept["images"], kept.get("latents"))

    def _path(self, images: range) -> Path:
        return self.folder / f"{images.start}-{images.stop}.safetensors"

    def _write(self, path: Path, pictures: Pictures) -> None:
        tensors = {"images": np.ascontiguousarray(pictures.images, dtype=np.float32)}
        if pictures.latents is not None:
            tensors["latents"] = np.ascontiguousarray(pictures.latents)
        sums = {name: checksum(tensor.tobytes()) for name, tensor in tensors.items()}
        metadata = {_KEY: self._key, **checksum_metadata(sums)}
        write_via(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
