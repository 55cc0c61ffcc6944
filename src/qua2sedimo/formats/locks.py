"""One process at a time: a lock on a part of a study, which the system releases when its process ends."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qua2sedimo.formats.files import unwritable

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows: processes do not wait for each other
    _LOCKS = False

_FILE = ".qua2sedimo.lock"
_POLL_SECONDS = 0.05
_BUSY = (errno.EAGAIN, errno.EACCES)
_held = threading.local()


@contextmanager
def alone(folder: Path, waiting: Callable[[], object] = lambda: None, name: str = "") -> Iterator[None]:
    """Within, no other process is in the part ``name`` of ``folder``; ``waiting`` is called once if one is.

    A thread that is inside already goes on. Where files cannot be locked, nothing is waited for. Raises
    :class:`Qua2SeDiMoError` naming the folder if nothing can be written there.
    """
    path = folder.resolve() / f"{_FILE}{name and '-'}{name}"
    inside: set[Path] = _held.__dict__.setdefault("paths", set())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquired(path, waiting) if _LOCKS and path not in inside else None
    except OSError as error:
        raise unwritable(folder, error) from error
    if not _LOCKS or path in inside:
        yield
        return
    inside.add(path)
    try:
        yield
    finally:
        inside.discard(path)
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is locked: who waits for it sees that it is gone, and makes another
        if handle is not None:
            os.close(handle)


def _acquired(path: Path, waiting: Callable[[], object]) -> int | None:
    """A handle that locks the file; None where files cannot be locked."""
    said = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                return handle
        except OSError as error:
            if error.errno not in _BUSY:
                os.close(handle)
                return None
            if not said:
                waiting()
                said = True
            time.sleep(_POLL_SECONDS)
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
