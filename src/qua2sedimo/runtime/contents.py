"""What an export consists of: qua2sedimo.json lists its files with their checksums.

So a changed scheduler or autoencoder is noticed, and an export over an earlier one knows which files are the user's.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_object, sha256, write_json
from qua2sedimo.formats.sealed import sealed, unsealed

INFO = "qua2sedimo.json"
EVALUATION = "evaluation.json"  # of this program too, but only true of the files it was measured on
_FILES = "files"
_AGAIN = "Restore the file, or move it away and export again: qua2sedimo export STUDY OUT."
_ELSEWHERE = "Restore it, or export to another folder."


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Write qua2sedimo.json, the last file of an export, with the checksums of all others."""
    files = {}
    for path in _entries(folder):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        files[path.relative_to(folder).as_posix()] = sha256(path)
    write_json(folder / INFO, sealed({**info, _FILES: files}))


def read_info(folder: Path) -> dict[str, Any]:
    """The content of qua2sedimo.json; raises :class:`Qua2SeDiMoError` if it is missing or damaged."""
    if not (folder / INFO).is_file():
        raise Qua2SeDiMoError(f"{folder} is not an exported model", "Export one: qua2sedimo export STUDY OUT.")
    info = unsealed(read_object(folder / INFO, _ELSEWHERE), folder / INFO, _ELSEWHERE)
    kinds = {"extra": dict, _FILES: dict, "component": (str, type(None))}
    for key, kind in kinds.items():
        if key in info and not isinstance(info[key], kind):  # type: ignore[arg-type]
            raise Qua2SeDiMoError(f"{folder / INFO} is damaged: '{key}' is a {type(info[key]).__name__}", _ELSEWHERE)
    return info


def check_contents(folder: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` naming a file of an export that is missing or was changed; others may be added.

    Exports of earlier versions list no files, and pass.
    """
    for name, wanted in read_info(folder).get(_FILES, {}).items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise Qua2SeDiMoError(f"{folder / name} is missing: {error.strerror or error}", _AGAIN) from error
        if found != wanted:
            raise Qua2SeDiMoError(f"{folder / name} is not what was exported: its checksum differs", _AGAIN)


def check_replaceable(out: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` unless an export may take the place of the folder ``out``: if it is empty, or an
    export whose own files are as they were written. What else lies there is carried over."""
    if not any(out.iterdir()):
        return
    info = read_info(out) if (out / INFO).is_file() else {}
    if "format_version" not in info:
        raise Qua2SeDiMoError(f"{out} is not empty and was not written by this program", "Choose another folder.")
    if _FILES not in info:
        raise Qua2SeDiMoError(
            f"{out} was exported by an earlier version, which did not note which files are its own",
            "Move it away, or choose another folder.",
        )
    for name, wanted in info[_FILES].items():
        if (out / name).exists() and sha256(out / name) != wanted:
            raise Qua2SeDiMoError(
                f"{out / name} was changed since it was exported, and would be overwritten",
                "Move it away, or choose another folder.",
            )


def carry_over(out: Path, new: Path) -> None:
    """Give the export ``new`` everything in ``out`` that the export there did not write.

    Files get a second name (a hard link) where the file system has such, else they are copied; ``out`` stays as it is.
    Raises :class:`Qua2SeDiMoError` if the new export has a file of the same name.
    """
    own = {INFO, EVALUATION, *read_info(out)[_FILES]} if (out / INFO).is_file() else {INFO, EVALUATION}
    for path in _entries(out, folders=True):
        name = path.relative_to(out).as_posix()
        if name in own or (path.is_dir() and not path.is_symlink() and (new / name).is_dir()):
            continue
        if os.path.lexists(new / name):
            raise Qua2SeDiMoError(
                f"{path} was not written by an export, and would be overwritten",
                "Move it away, or choose another folder.",
            )
        _carry(path, new / name)


def _carry(path: Path, to: Path) -> None:
    if path.is_symlink():
        to.symlink_to(path.readlink())
    elif path.is_dir():
        to.mkdir()
    elif not path.is_file():
        raise Qua2SeDiMoError(f"{path} is no regular file, and cannot be carried over", "Move it away.")
    else:
        try:
            os.link(path, to)
        except OSError:
            shutil.copy2(path, to)


def allow_reading(folder: Path) -> None:
    """Give all files of a folder the permissions that the user's umask leaves; some libraries make them private."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in _entries(folder):
        path.chmod(mode)


def _entries(folder: Path, folders: bool = False) -> Iterator[Path]:
    """Everything in a folder but folders themselves, sorted; with ``folders`` also those, before what is in them."""
    for place, inner, files in os.walk(folder):
        inner.sort()
        linked = {name for name in inner if (Path(place) / name).is_symlink()}
        yield from (Path(place) / name for name in inner if folders or name in linked)
        yield from (Path(place) / name for name in sorted(files))
