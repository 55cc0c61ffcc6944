"""Checksums that GGUF files of this program carry: of the whole file, but for the place of the checksum itself."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError

#: The name of the entry, and its value before it is known.
NAME = "qua2sedimo.checksum"
UNKNOWN = "0" * 64
_TEXT = 8  # the type of the entry
_ENTRY = NAME.encode() + struct.pack("<IQ", _TEXT, len(UNKNOWN))
_HEAD = 1 << 20  # bytes in which the entry is
_PIECE = 1 << 20


def seal(path: Path) -> None:
    """Write the checksum of a file in the place that was left for it."""
    at = _place(path)
    assert at is not None
    found = _digest(path, at)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(found.encode())


def has_checksum(path: Path) -> bool:
    """Whether a file was written by this program, which gives it a checksum."""
    return _place(path) is not None


def check(path: Path, remedy: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if a file has a checksum, and it differs; those of other programs have none."""
    at = _place(path)
    if at is None:
        return
    with path.open("rb") as file:
        file.seek(at)
        wanted = file.read(len(UNKNOWN))
    if wanted != _digest(path, at).encode():
        raise Qua2SeDiMoError(f"{path} is not what was exported: its checksum differs", remedy)


def _place(path: Path) -> int | None:
    """Where the checksum begins; None if the file has none."""
    with path.open("rb") as file:
        at = file.read(_HEAD).find(_ENTRY)
    return None if at < 0 else at + len(_ENTRY)


def _digest(path: Path, at: int) -> str:
    """SHA-256 of the file with the checksum at this place unknown."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        found.update(file.read(at) + UNKNOWN.encode())
        file.seek(at + len(UNKNOWN))
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()
