"""Reading and writing files: what is written is whole or absent, and every failure names the file and a remedy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.temporary import temporary_folder
from qua2sedimo.formats.text import size_text

_PIECE = 1 << 20  # bytes hashed at a time
_MOVE = "Restore it, or, if this program wrote it, move it away and run the command again to write it anew."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)
_MARGIN = 1 << 20  # bytes of headers and directories that an estimate leaves out


def write_via(path: Path, write: Callable[[Path], object], nbytes: int | None = None) -> None:
    """Let ``write`` fill a temporary file, flush it to disk, and rename it to ``path``.

    The file gets the permissions that the user's umask leaves. ``nbytes``: its size, for the message if the disk is
    full. Raises :class:`Qua2SeDiMoError` naming the file if it cannot be written.
    """
    try:
        with temporary_folder(path.parent) as folder:
            temporary = folder / path.name
            write(temporary)
            temporary.chmod(stat.S_IMODE(folder.stat().st_mode) & 0o666)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error, nbytes) from error


def unwritable(path: Path, error: Exception, nbytes: int | None = None) -> Qua2SeDiMoError:
    """The error for a file or folder that could not be written: why, what it needs where that is known, what to do."""
    number = _number_of(error)
    why = os.strerror(number) if number else str(error)
    if number in _FULL:
        needs = f"; it needs {size_text(nbytes)}, {size_text(_free(path))} are free" if nbytes else ""
        remedy = "Free disk space or choose another folder, then run the command again."
        return Qua2SeDiMoError(f"cannot write {path}: {why}{needs}", remedy)
    if number in _LOCKED:
        return Qua2SeDiMoError(
            f"cannot write {path}: its place is read-only ({why})",
            "Choose another folder, or allow writing there, then run the command again.",
        )
    return Qua2SeDiMoError(f"cannot write {path}: {why}", "Choose another place, then run the command again.")


def _number_of(error: Exception) -> int | None:
    """The system's number of an error, also where a library has put it into words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # by numpy, which does not say why
        return errno.ENOSPC
    found = re.search(r"os error (\d+)", str(error))  # by safetensors
    return int(found[1]) if found else None


def unreadable(path: Path, error: OSError, remedy: str | None = None) -> Qua2SeDiMoError:
    """The error for a file that could not be read; ``remedy`` is for one that is damaged, not for one that may not be
    read."""
    if error.errno in _LOCKED:
        remedy = "Allow reading it, then run the command again."
    return Qua2SeDiMoError(f"cannot read {path}: {error.strerror or error}", remedy)


def check_space(path: Path, nbytes: int, what: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if the disk of ``path`` has not ``nbytes`` left; ``what`` is to be written there.

    Quotas are not known here: a disk that only seems to have room is an error when it is full.
    """
    free = _free(path)
    if nbytes + _MARGIN > free:
        raise Qua2SeDiMoError(
            f"{what} needs {size_text(nbytes)} in {path}, where {size_text(free)} are free",
            "Free disk space or choose another folder, then run the command again.",
        )


def _free(path: Path) -> int:
    """Bytes left on the disk that ``path`` is or will be on."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    """The path itself, or its nearest folder that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex digits; raises OSError if it cannot be read."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
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
    try:
        place = _existing(path.absolute().parent)
    except OSError as error:  # a name that is too long
        raise unwritable(path, error) from error
    if not place.is_dir():
        raise Qua2SeDiMoError(f"cannot write {path}: {place} is a file, not a folder", "Choose another folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise Qua2SeDiMoError(f"cannot write {path}: {place} is read-only", "Choose another folder.")


def check_ours(path: Path, mark: str | None = None) -> None:
    """Raise :class:`Qua2SeDiMoError` if a file is at ``path`` that this program would not have written there: one in
    which ``mark``, some words of every such file, is missing; any file, without one."""
    if not os.path.lexists(path):
        return
    refuse_special(path, "Choose another name.")
    try:
        ours = mark is not None and mark.encode() in path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not ours:
        raise Qua2SeDiMoError(
            f"{path} exists, and this command did not write it", "Choose another name, or move the file away."
        )


def write_text(path: Path, text: str) -> None:
    write_via(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), len(text))


def refuse_special(path: Path, remedy: str = _MOVE) -> None:
    """Raise :class:`Qua2SeDiMoError` if a folder, a pipe or a device is in place of a file: opening it might never
    end."""
    if path.exists() and not path.is_file():
        raise Qua2SeDiMoError(f"{path} is not a regular file", remedy)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1))


def read_text(path: Path, remedy: str = _MOVE) -> str:
    """The text of a regular file, in UTF-8.

    Raises :class:`Qua2SeDiMoError` naming the file if it is missing, cannot be read, is no text, or is a folder, a pipe
    or a device, which might never end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Qua2SeDiMoError(f"{path} is not a regular file", "Name a file.")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise Qua2SeDiMoError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise Qua2SeDiMoError(f"{path} is damaged: {error}", remedy or _MOVE) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # a name that no file can have
        raise Qua2SeDiMoError(f"cannot read {path}: {error}") from error


def read_json(path: Path, remedy: str = _MOVE) -> Any:
    """The file's content; raises :class:`Qua2SeDiMoError` naming a missing, unreadable or damaged file."""
    text = read_text(path, remedy)
    try:
        return parse_json(text)
    except ValueError as error:
        raise Qua2SeDiMoError(f"{path} is damaged: {error}", remedy or _MOVE) from error


def parse_json(text: str) -> Any:
    """The content of JSON text; raises ValueError also for what is nested too deep or has too long numbers."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_object(path: Path, remedy: str = _MOVE) -> dict[str, Any]:
    """A JSON object; raises :class:`Qua2SeDiMoError` naming the file, also if it is another kind of value."""
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise Qua2SeDiMoError(f"{path} is damaged: it holds a {type(content).__name__}, not an object", remedy or _MOVE)
    return content
