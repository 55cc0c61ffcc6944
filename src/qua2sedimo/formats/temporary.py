"""Folders that files and exports are prepared in, beside their place, and what interrupted processes left of them.

A process claims its folder by a lock on it, which the system releases when the process ends, however it ends. So a
folder without a lock was left behind, whatever process has its number now. Systems without such locks (Windows, some
network file systems) keep what was left.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows
    _LOCKS = False

_NAME = re.compile(r"\.qua2sedimo-[0-9a-f]{16}\.tmp")
#: Within such a folder: what was at the place of an export, where it cannot be exchanged in one step.
_DISPLACED = "displaced"
_RENAME_EXCHANGE = _RENAME_SWAP = 2
_AT_FDCWD = -100
#: Folders that this process has cleared.
_cleared: set[Path] = set()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder for this user alone where the system keeps what is temporary; as :func:`temporary_folder`."""
    with temporary_folder(Path(tempfile.gettempdir()), mode=0o700) as folder:
        yield folder


@contextmanager
def temporary_folder(parent: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new folder in ``parent``, removed in the end. What dead processes left in ``parent`` is removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    if parent not in _cleared:
        clear_leftovers(parent)
        _cleared.add(parent)
    claim = None
    while claim is None:  # again if another process took it for a leftover before it was claimed
        folder = parent / f".qua2sedimo-{secrets.token_hex(8)}.tmp"
        folder.mkdir(mode)
        claim = _claimed(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(claim)


def clear_leftovers(parent: Path) -> None:
    """Remove what processes that ended left in ``parent``; an export that they had moved aside goes back first."""
    with suppress(OSError):
        found = [e for e in os.scandir(parent) if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        for folder in [Path(entry.path) for entry in found]:
            claim = _lock_of(folder)
            if claim is None:
                continue
            try:
                for old in (folder / _DISPLACED).glob("*"):
                    if not (parent / old.name).exists():
                        old.rename(parent / old.name)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(claim)


def put_in_place(new: Path, out: Path, temporary: Path) -> None:
    """Rename the folder ``new`` to ``out``; what ``out`` held is then in ``temporary``, where it is removed.

    On Linux and macOS one step exchanges both, so that a kill leaves one of them. Elsewhere there are two steps, and
    :func:`clear_leftovers` undoes the first if the second did not follow.
    """
    if not os.path.lexists(out):
        new.rename(out)
    elif not _exchanged(new, out):
        (temporary / _DISPLACED).mkdir()
        out.rename(temporary / _DISPLACED / out.name)
        try:
            new.rename(out)
        except OSError:
            (temporary / _DISPLACED / out.name).rename(out)
            raise


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False if the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    first, second = os.fsencode(a), os.fsencode(b)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(first, second, _RENAME_SWAP)  # type: ignore[union-attr]
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)  # type: ignore[union-attr]
    else:
        return False
    if failed and ctypes.get_errno() in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(b))
    return True


def _claimed(folder: Path) -> int | None:
    """The lock of a folder just made; −1 on systems without locks; None if the folder is gone."""
    if not _LOCKS:
        return -1
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # this file system has no locks, so nobody will take the folder for a leftover
        return handle
    if folder.exists():
        return handle
    os.close(handle)
    return None


def _lock_of(folder: Path) -> int | None:
    """The lock of a folder that no living process has claimed; None if one has, or if that cannot be known."""
    if not _LOCKS:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _release(claim: int) -> None:
    if claim >= 0:
        os.close(claim)
