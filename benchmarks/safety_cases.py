"""Commands are killed, alone and with workers, and two run at the same moment."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from qua2sedimo.records import Records
from qua2sedimo.system.progress import without_note
from qua2sedimo.terminal.progress import Lines
from safety_book import EXPECTED, REFUSED, WRONG, Page
from safety_ground import COMMANDS, SLOW, Child, Ended, Ground
from safety_study import essence, leftovers, rows, unequal

# Kills --------------------------------------------------------------------------------------------------------------

_FILES = {"open", "os.rename", "os.mkdir", "os.link", "os.chmod", "os.rmdir", "os.remove", "sqlite3.connect"}
_NUMBER = re.compile(r"\d[\d.]*")
#: What a moment is counted by: files opened, renamed or removed; measurements recorded; else the stages that report.
FILES, RECORDS = "touching a file", "recording a measurement"


def kills(ground: Ground, page: Page) -> None:
    """Kill a command at random moments of each of its stages, up to three times in a row; then let it end."""
    state, words = COMMANDS[page.name]
    place, counter = ground.copy(state), ground.own / "counted"
    whole = ground.whole(place, words, watched(place, to=counter))
    counts: dict[str, int] = json.loads(counter.read_text())
    expected = essence(place)
    ground.drop(place)
    ways = ["by the clock", *sorted(counts)]
    more = [FILES + " again", "by the clock again", *(f"several, {i + 1}" for i in range(1 + len(ways) // 4))]
    cases = ways[::3] if page.book.quick else ways[::2] if page.name in SLOW else [*ways, *more]
    for case in page.lacking(cases):
        chance, place, moments = page.chance(case), ground.copy(state), []
        for _ in range(3 if case.startswith("several") else 1):
            way = chance.choice(ways) if case.startswith("several") else case.removesuffix(" again")
            if way == "by the clock":
                ended = Child(place, words).kill_after(chance.uniform(0, whole.seconds))
            else:
                ended = ground.run(place, words, watched(place, (way, chance.randint(1, counts[way]))))
            moments += [way] * (ended.status == -signal.SIGKILL)
        ended = ground.run(place, words)
        judge(page, case, place, ended, expected, f"killed at {moments}", moments=moments, kills=len(moments))
        ground.drop(place)


def judge(
    page: Page, case: Any, place: Path, ended: Ended, expected: dict[str, Any], note: str, numbers: bool = True,
    **more: Any,
) -> None:  # fmt: skip
    """A command that must have ended as if nothing had happened before."""
    left, differs = leftovers(place), unequal(essence(place, numbers), expected)
    if ended.status != 0:
        page.add(case, WRONG, f"{note}, then: {ended.status} {ended.output[-1500:]}", **more)
    elif left or differs:
        page.add(case, WRONG, f"{note}: left {left}, differs {differs[:8]}", **more)
    else:
        page.add(case, EXPECTED, **more)


def watched(place: Path, at: tuple[str, int] | None = None, to: Path | None = None) -> Callable[[], None]:
    """A preparation: the process counts moments of each kind, and kills itself ``at`` the n-th of one kind.

    With ``to`` it writes the numbers there when it ends.
    """

    def prepare() -> None:
        counts: Counter[str] = Counter()
        here = str(place)

        def came(kind: str) -> None:
            counts[kind] += 1
            if (kind, counts[kind]) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def touched(event: str, details: tuple[Any, ...]) -> None:
            if event in _FILES and details and isinstance(details[0], (str, bytes, os.PathLike)):
                name = os.fsdecode(details[0])
                if name.startswith(here) or not name.startswith("/"):
                    came(FILES)

        said, add, leave = Lines.__call__, Records.add, os._exit

        def reported(self: Lines, done: int, total: int, what: str) -> None:
            said(self, done, total, what)
            came(_NUMBER.sub("N", without_note(what)))

        def added(self: Records, record: Any) -> None:
            came(RECORDS)
            add(self, record)
            came(RECORDS)

        def left(status: int) -> None:
            if to is not None:
                kinds = dict(counts)
                to.write_text(json.dumps(kinds))
            leave(status)

        Lines.__call__, Records.add = reported, added  # type: ignore[method-assign]
        os._exit = left  # type: ignore[assignment]
        sys.addaudithook(touched)

    return prepare


#: Commands that are killed with workers, and how many times.
WITH_WORKERS = {"search": 3, "measure": 1, "choose": 1, "frontier": 1}


def killed_workers(ground: Ground, page: Page) -> None:
    """A command with two Ray workers, killed at a random measurement, then ended by workers or by one process: the
    numbers are those of one process."""
    state, words = COMMANDS[page.name]
    place, counter = ground.copy(state), ground.own / "counted"
    ground.whole(place, words, watched(place, to=counter))
    counts, expected = json.loads(counter.read_text()), essence(place, numbers=False)
    ground.drop(place)
    for case in page.lacking(range(1 if page.book.quick else WITH_WORKERS[page.name])):
        place, at = ground.copy(state), page.chance(case).randint(1, counts[RECORDS])
        by = (*words, "--workers", "2")
        killed = Child(place, by, watched(place, (RECORDS, at)), patience=400).ended()
        ended = Child(place, words if case == 1 else by, patience=400).ended()
        moments = [RECORDS] * (killed.status == -signal.SIGKILL)
        note = f"killed at {at} of {counts[RECORDS]}"
        judge(page, case, place, ended, expected, note, numbers=False, kills=len(moments), moments=moments)
        ground.drop(place)


# Pairs --------------------------------------------------------------------------------------------------------------

_EVERY = ("measure", "search", "choose", "frontier", "quantize", "observe", "export")
_OTHERS = ("fit", "quick", "polish", "explain", "records")
_NEW = (("observe", "observe"), ("observe", "quantize"), ("quantize", "quantize"), ("measure", "measure"),
        ("measure", "quantize"), ("search", "search"), ("search", "measure"), ("quick", "quick"), ("quick", "search"),
        ("quick", "observe"), ("frontier", "measure"))  # fmt: skip


def pair_names(quick: bool) -> list[str]:
    """Of a new study, those that make the same; of a finished one, all of seven commands and some of the others."""
    every = list(combinations_with_replacement((*_EVERY, *_OTHERS), 2))
    random.Random(0).shuffle(every)
    named = [pair for pair in every if set(pair) <= set(_EVERY)]
    others = [pair for pair in every if pair not in named]
    chosen = named[::4] + others[::12] if quick else [*named, *others[::5], ("report", "report"), ("export", "report")]
    return [f"new: {a} + {b}" for a, b in _NEW[:: 3 if quick else 1]] + [f"reported: {a} + {b}" for a, b in chosen]


def pairs(ground: Ground, page: Page) -> None:
    """Two commands on one study at the same moment: all that was measured is recorded, both can be run again."""
    state, _, both = page.name.partition(": ")
    a, _, b = both.partition(" + ")
    if not page.lacking([0]):
        return
    place, log = ground.copy(state), ground.own / "acknowledged"
    log.unlink(missing_ok=True)
    lines = [_words(name, "one" if i == 0 else "two") for i, name in enumerate((a, b))]
    alone = None if state != "new" or {a, b} == {"search", "measure"} else _one_by_one(ground, state, lines)
    first = Child(place, lines[0], noting(log))
    time.sleep(page.chance(0).choice((0, 0, 0.05, 0.3, 1)))
    second = Child(place, lines[1], noting(log))
    ends = [first.ended(), second.ended()]
    lost = _lost(place, log)
    again = [ground.run(place, words) for words in lines]
    bad = [e for e in (*ends, *again) if e.status != 0]
    if lost:
        page.add(0, WRONG, f"lost {lost[:3]}", of=[a, b])
    elif any(not e.refused for e in bad) or any(e.status for e in again):
        page.add(0, WRONG, f"{state}: {[e.status for e in (*ends, *again)]} {bad[0].output[-1500:]}", of=[a, b])
    elif leftovers(place):
        page.add(0, WRONG, f"left {leftovers(place)}", of=[a, b])
    elif alone is not None and (differs := unequal(essence(place, numbers=False), alone)):
        page.add(0, WRONG, f"differs from one after the other: {differs[:6]}", of=[a, b])
    else:
        page.add(0, REFUSED if bad else EXPECTED, of=[a, b])
    ground.drop(place)


def _one_by_one(ground: Ground, state: str, lines: list[tuple[str, ...]]) -> dict[str, Any]:
    """What a place holds when one command began after the other had ended.

    Not asked where the evidence that a search has depends on which was first.
    """
    place = ground.copy(state)
    for words in lines:
        ground.whole(place, words)
    found = essence(place, numbers=False)
    ground.drop(place)
    return found


def _words(name: str, who: str) -> tuple[str, ...]:
    """A command that has something to do in a study that is finished."""
    more = {"measure": ("measure", "study", "--configurations", "26"),
            "frontier": ("frontier", "study", "--images", "4"),
            "choose": ("choose", "study", "--bits", "3.4", "--candidates", "2"),
            "search": ("search", "study", "--bits", "3.4", "--images", "400"),
            "records": ("records", "study", "--out", f"{who}.csv")}  # fmt: skip
    return more.get(name, COMMANDS[name][1])


def noting(log: Path) -> Callable[[], None]:
    """A preparation: every measurement that was recorded is also noted in ``log``."""

    def prepare() -> None:
        add = Records.add

        def added(self: Records, record: Any) -> None:
            add(self, record)
            m = record.measurement
            line = json.dumps([record.role, record.configuration.digest, m.start, m.images])
            with log.open("a") as file:
                file.write(line + "\n")

        Records.add = added  # type: ignore[method-assign]

    return prepare


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
