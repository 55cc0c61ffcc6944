"""The disk is full, files cannot grow, or nothing may be written."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safety_book import EXPECTED, REFUSED, WRONG, Page
from safety_ground import COMMANDS, Child, Ended, Ground, mounted
from safety_study import essence, leftovers, unequal

_PIPE = 1 << 20  # bytes that a command may print
_ROOMY = 1 << 30
_TOLD = ("Free disk space", "disk is full", "free some space")


def full_disk(ground: Ground, page: Page) -> None:
    """A command on a small disk with too little room, or a random share of it: an error that says so; with room again
    it ends as ever."""
    if not ground.mounts:
        return
    state, words = COMMANDS[page.name]
    place = ground.copy(state, disk=True)
    before = shutil.disk_usage(place).used
    ground.whole(place, words)
    wanted, expected = shutil.disk_usage(place).used - before, essence(place)
    ground.drop(place)
    for case in page.lacking(range(1 if page.book.quick else 2)):
        place = ground.copy(state, disk=True)
        room = page.chance(case).randint(0, max(4096, wanted)) if case else 0
        _resize(place, shutil.disk_usage(place).used + room)
        ended = _unlogged(place, words, lambda: None)
        _resize(place, _ROOMY)
        _judge(ground, page, case, place, ended, expected, f"a disk with {room} of {wanted} bytes left")
        ground.drop(place)


def limited_files(ground: Ground, page: Page) -> None:
    """A command where files cannot grow beyond a random size: an error that says so; without the limit it ends as
    ever."""
    state, words = COMMANDS[page.name]
    place = ground.copy(state)
    before = {p: p.stat().st_size for p in place.rglob("*") if p.is_file()}
    ground.whole(place, words)
    written = [p.stat().st_size for p in place.rglob("*") if p.is_file() and before.get(p) != p.stat().st_size]
    expected = essence(place)
    ground.drop(place)
    for case in page.lacking(range(1 if page.book.quick else 2)):
        place, limit = ground.copy(state), page.chance(case).randint(0, max(1, max(written, default=1) - 1))
        ended = _unlogged(place, words, partial(_limit_files, limit))
        _judge(ground, page, case, place, ended, expected, f"files of at most {limit} bytes")
        ground.drop(place)


def _limit_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def _unlogged(place: Path, words: Sequence[str], prepare: Callable[[], None]) -> Ended:
    """A command whose output goes through a pipe: the disk and the limit on files do not matter to it."""
    receiving, sending = os.pipe()
    os.set_blocking(receiving, False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(sending, fcntl.F_SETPIPE_SZ, _PIPE)

    def prepared() -> None:
        os.dup2(sending, 1)
        os.dup2(sending, 2)
        prepare()

    ended = Child(place, words, prepared).ended()
    os.close(sending)
    said = b""
    while piece := os.read(receiving, _PIPE):
        said += piece
    os.close(receiving)
    return replace(ended, output=ended.output + said.decode(errors="replace"))


def _judge(
    ground: Ground, page: Page, case: int, place: Path, ended: Ended, expected: dict[str, Any], note: str
) -> None:
    told = any(text in ended.output for text in _TOLD)
    if ended.status not in (0, 1) or (ended.status == 1 and not (ended.refused and told)):
        page.add(case, WRONG, f"{note}: {ended.status} {ended.output[-1500:]}")
        return
    again = ground.run(place, COMMANDS[page.name][1])
    left, differs = leftovers(place), unequal(essence(place), expected)
    if again.status or left or differs:
        page.add(case, WRONG, f"{note}, then with room: {again.output[-800:]} left {left} differs {differs[:6]}")
    else:
        page.add(case, REFUSED if ended.status else EXPECTED)


def _resize(place: Path, size: int) -> None:
    if not mounted("-o", f"remount,size={size}", str(place)):
        raise SystemExit(f"cannot resize the disk at {place}")


def read_only(ground: Ground, page: Page) -> None:
    """A command by a user who may only read, and on a disk that is mounted read-only: a result on the terminal, or an
    error that says read-only; nothing is changed."""
    if os.name != "posix" or os.geteuid() != 0:
        return
    state, words = COMMANDS[page.name]
    for case in page.lacking(["permissions", "mount"] if ground.mounts else ["permissions"]):
        place = ground.copy(state, disk=case == "mount")
        before = essence(place)
        if case == "mount" and not mounted("-o", "remount,ro", str(place)):
            raise SystemExit(f"cannot remount {place}")
        limited = partial(os.setuid, 65534) if case == "permissions" else lambda: None
        ended = _unlogged(place, words, limited)
        if case == "mount":
            mounted("-o", "remount,rw", str(place))  # else SQLite cannot read its file
        differs = unequal(essence(place), before)
        if differs:
            page.add(case, WRONG, f"changed {differs[:6]}")
        elif ended.status == 0:
            page.add(case, EXPECTED)
        elif ended.refused and "read-only" in ended.output.lower():
            page.add(case, REFUSED)
        else:
            page.add(case, WRONG, f"{ended.status} {ended.output[-1000:]}")
        ground.drop(place)
