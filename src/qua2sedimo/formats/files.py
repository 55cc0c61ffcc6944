"""Atomic file writes: into a temporary file in the same folder, flushed, and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qua2sedimo.errors import Qua2SeDiMoError

_PIECE = 1 << 20  # bytes hashed at a time
_MOVE = "Restore it, or, if this program wrote it, move it away and run the command again to write it anew."


def write_via(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, flush it to disk, and rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise Qua2SeDiMoError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}",
            "Free disk space or choose another folder, then run the command again.",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex digits; raises OSError if it cannot be read."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        while piece := handle.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """The first sixteen digits of :func:`sha256`; empty if there is no such file."""
    try:
        return sha256(path)[:16]
    except OSError:
        return ""


def check_writable(path: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if no file or folder can be created at ``path``; nothing is written."""
    place = next(parent for parent in path.absolute().parents if parent.exists())
    reason = "" if place.is_dir() else f"{place} is a file, not a folder"
    if not reason and not os.access(place, os.W_OK | os.X_OK):
        reason = f"no permission to write in {place}"
    if reason:
        raise Qua2SeDiMoError(f"cannot write {path}: {reason}", "Choose another folder.")


def write_text(path: Path, text: str) -> None:
    write_via(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1))


def read_json(path: Path, remedy: str = _MOVE) -> Any:
    """The file's content; raises :class:`Qua2SeDiMoError` naming a missing or damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Qua2SeDiMoError(f"{path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Qua2SeDiMoError(f"{path} is damaged: {error}", remedy or _MOVE) from error


def read_document(path: Path, format: int, remedy: str) -> dict[str, Any]:
    """A JSON object with the given ``format`` number; raises :class:`Qua2SeDiMoError` with the remedy otherwise."""
    content = read_json(path)
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or found != format:
        raise Qua2SeDiMoError(f"{path}: format {found} is not {format}", remedy)
    return content
