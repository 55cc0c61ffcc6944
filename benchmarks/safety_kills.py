"""Commands are killed, alone and with workers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qua2sedimo.records import Records
from qua2sedimo.system.progress import without_note
from qua2sedimo.terminal.progress import Lines
from safety_book import EXPECTED, WRONG, Page
from safety_ground import COMMANDS, SLOW, Child, Ended, Ground
from safety_study import essence, leftovers, unequal

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
