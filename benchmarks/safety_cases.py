"""What happens to commands: they are killed, two run at the same moment, the disk is full or read-only."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from safety_ground import (
    COMMANDS,
    EXPECTED,
    REFUSED,
    WRONG,
    Child,
    Ended,
    Ground,
    Tally,
    essence,
    leftovers,
    noting,
    rows,
    steps_of,
    unequal,
)

# Kills --------------------------------------------------------------------------------------------------------------


def kills(ground: Ground, tally: Tally, trials: int, chance: random.Random) -> None:
    """Kill each command at random moments and at random steps, up to three times in a row; then let it end."""
    for name, (state, words) in COMMANDS.items():
        place, counter = ground.copy(state), ground.work / "steps"
        whole = ground.run(place, words, steps_of(place, 0, counter))
        steps, expected = int(counter.read_text()), essence(place)
        ground.drop(place)
        for trial in range(trials):
            place, moments = ground.copy(state), []
            for _ in range(chance.choice((1, 1, 2, 3))):
                if trial % 2:
                    moments.append(f"step {(at := chance.randint(1, steps))}")
                    Child(place, words, steps_of(place, at)).ended()
                else:
                    moments.append(f"{(after := chance.uniform(0, whole.seconds)):.2f} s")
                    Child(place, words).kill_after(after)
            ended = ground.run(place, words)
            _judge(tally, name, place, ended, expected, f"killed at {moments}")
            ground.drop(place)


def _judge(
    tally: Tally, name: str, place: Path, ended: Ended, expected: dict[str, Any], note: str, numbers: bool = True
) -> None:
    """A command that must have ended as if nothing had happened before."""
    left, differs = leftovers(place), unequal(essence(place, numbers), expected)
    if ended.status != 0:
        tally.add(name, WRONG, f"{note}, then: {ended.output[-1500:]}")
    elif left or differs:
        tally.add(name, WRONG, f"{note}: left {left}, differs {differs[:8]}")
    else:
        tally.add(name, EXPECTED)


def killed_workers(ground: Ground, tally: Tally, trials: int, chance: random.Random) -> None:
    """A search by two Ray workers, killed, then ended by one process and by workers: the numbers of one process."""
    words = COMMANDS["search"][1]
    place = ground.copy("bank")
    ground.run(place, words)
    expected = essence(place, numbers=False)
    ground.drop(place)
    for trial in range(trials):
        place, after = ground.copy("bank"), chance.uniform(15, 40)
        Child(place, (*words, "--workers", "2")).kill_after(after)
        last = words if trial % 2 else (*words, "--workers", "2")
        ended = Child(place, last, patience=400).ended()
        _judge(tally, "search --workers 2", place, ended, expected, f"killed after {after:.1f} s", numbers=False)
        ground.drop(place)


# Pairs --------------------------------------------------------------------------------------------------------------

_TOGETHER = ("measure", "fit", "search", "choose", "frontier", "quantize", "observe", "quick", "polish", "export",
             "report", "explain", "records")  # fmt: skip


def pairs(ground: Ground, tally: Tally, share: float, chance: random.Random) -> None:
    """Two commands on one study at the same moment: everything measured is recorded, and both can be run again."""
    cases = [("reported", a, b) for a, b in combinations_with_replacement(_TOGETHER, 2)]
    chance.shuffle(cases)
    fresh = [("new", a, b) for a, b in (("observe", "observe"), ("observe", "quantize"), ("quantize", "quantize"),
             ("measure", "measure"), ("measure", "quantize"), ("search", "search"), ("search", "measure"))]  # fmt: skip
    for state, a, b in (*fresh, *cases[: int(share * len(cases))]):
        place, log = ground.copy(state), ground.work / "acknowledged"
        log.unlink(missing_ok=True)
        lines = [_words(name, place, "one" if i == 0 else "two") for i, name in enumerate((a, b))]
        first = Child(place, lines[0], noting(log))
        time.sleep(chance.choice((0, 0, 0.05, 0.3, 1)))
        second = Child(place, lines[1], noting(log))
        ends = [first.ended(), second.ended()]
        lost = _lost(place, log)
        again = [ground.run(place, words) for words in lines]
        name, bad = f"{a} + {b}", [e for e in (*ends, *again) if e.status != 0]
        if lost:
            tally.add(name, WRONG, f"lost {lost[:3]}")
        elif any(not e.refused for e in bad) or any(e.status for e in again):
            tally.add(name, WRONG, f"{state}: {[e.status for e in (*ends, *again)]} {bad[0].output[-1500:]}")
        elif leftovers(place):
            tally.add(name, WRONG, f"left {leftovers(place)}")
        else:
            tally.add(name, REFUSED if bad else EXPECTED)
        ground.drop(place)


def _words(name: str, place: Path, who: str) -> tuple[str, ...]:
    """A command that has something to do in a study that is finished."""
    more = {"measure": ("measure", "study", "--configurations", "26"),
            "frontier": ("frontier", "study", "--images", "4"),
            "choose": ("choose", "study", "--bits", "3.4", "--candidates", "2"),
            "search": ("search", "study", "--bits", "3.4", "--images", "400")}  # fmt: skip
    return ("records", "study", "--out", f"{who}.csv") if name == "records" else more.get(name, COMMANDS[name][1])


def _lost(place: Path, log: Path) -> list[str]:
    """Acknowledged measurements that are not in records.db."""
    noted = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    kept: dict[tuple[str, str], set[int]] = {}
    for row in rows(place):
        images = len(next(iter(json.loads(row["metrics"]).values()), []))
        kept.setdefault((row["role"], row["digest"]), set()).update(
            range(row["first_image"], row["first_image"] + images)
        )
    return [
        f"{role} {digest} {start}"
        for role, digest, start, count in noted
        if not kept.get((role, digest), set()) >= set(range(start, start + count))
    ]


# Full and read-only disks -------------------------------------------------------------------------------------------


_PIPE = 1 << 20  # bytes that a command may print


def full_disk(ground: Ground, tally: Tally, trials: int, chance: random.Random) -> None:
    """Each command where files cannot grow beyond a random size, or on a small disk if one can be mounted: an error
    that says so, and with room again the command ends as ever."""
    disk = _mounted(ground.work / "disk")
    try:
        for name, (state, words) in COMMANDS.items():
            place = ground.copy(state)
            before = {p: p.stat().st_size for p in place.rglob("*") if p.is_file()}
            ground.run(place, words)
            expected = essence(place)
            written = [p.stat().st_size for p in place.rglob("*") if p.is_file() and before.get(p) != p.stat().st_size]
            ground.drop(place)
            for trial in range(trials):
                if disk is not None and trial % 2 and state != "empty":  # whose model's place would be another
                    _on_small_disk(ground, tally, disk, name, sum(written), expected, chance)
                else:
                    place, limit = ground.copy(state), chance.randint(0, max(1, max(written, default=1) - 1))
                    limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                    ended = _unlogged(place, words, limited)
                    _judge_full(ground, tally, name, place, ended, expected, f"files of at most {limit} bytes")
                    ground.drop(place)
    finally:
        if disk is not None:
            subprocess.run(["umount", str(disk)], check=False)


def _unlogged(place: Path, words: Sequence[str], limited: Callable[[], None]) -> Ended:
    """A command with a limit on files; what it prints goes through a pipe, which has no such limit."""
    receiving, sending = os.pipe()
    os.set_blocking(receiving, False)
    _widen(sending, _PIPE)

    def prepare() -> None:
        os.dup2(sending, 1)
        os.dup2(sending, 2)
        limited()

    ended = Child(place, words, prepare).ended()
    os.close(sending)
    said = b""
    while piece := os.read(receiving, _PIPE):
        said += piece
    os.close(receiving)
    return replace(ended, output=ended.output + said.decode(errors="replace"))


def _widen(pipe: int, size: int) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)


def _on_small_disk(
    ground: Ground, tally: Tally, disk: Path, name: str, written: int, expected: dict[str, Any], chance: random.Random
) -> None:
    state, words = COMMANDS[name]
    _resize(disk, 1 << 30)
    place = ground.copy(state, disk)
    used = shutil.disk_usage(disk).used
    room = chance.randint(0, max(1, written))
    _resize(disk, used + room)
    ended = _unlogged(place, words, lambda: None)
    _resize(disk, 1 << 30)
    _judge_full(ground, tally, name, place, ended, expected, f"a disk with {room} bytes left")
    ground.drop(place)


def _judge_full(
    ground: Ground, tally: Tally, name: str, place: Path, ended: Ended, expected: dict[str, Any], note: str
) -> None:
    words = COMMANDS[name][1]
    told = any(text in ended.output for text in ("Free disk space", "disk is full", "free some space"))
    if ended.status not in (0, 1) or (ended.status == 1 and not (ended.refused and told)):
        tally.add(name, WRONG, f"{note}: {ended.status} {ended.output[-1500:]}")
        return
    again = ground.run(place, words)
    left, differs = leftovers(place), unequal(essence(place), expected)
    if again.status or left or differs:
        tally.add(name, WRONG, f"{note}, then with room: {again.output[-800:]} left {left} differs {differs[:6]}")
    else:
        tally.add(name, REFUSED if ended.status else EXPECTED)


def _mounted(disk: Path) -> Path | None:
    """A small disk in memory, if this process may mount one."""
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64M", "none", str(disk)]
    mounted = shutil.which("mount") and subprocess.run(words, capture_output=True, check=False).returncode == 0
    return disk if mounted else None


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def read_only(ground: Ground, tally: Tally) -> None:
    """Each command by a user who may only read: a result on the terminal, or an error that says read-only."""
    if os.name != "posix" or os.geteuid() != 0:
        return
    ground.work.chmod(0o755)
    for name, (state, words) in COMMANDS.items():
        place = ground.copy(state)
        ended = ground.run(place, words, partial(os.setuid, 65534))
        if ended.status == 0:
            tally.add(name, EXPECTED)
        elif ended.refused and "read-only" in ended.output:
            tally.add(name, REFUSED)
        else:
            tally.add(name, WRONG, f"{ended.status} {ended.output[-1000:]}")
        ground.drop(place)
