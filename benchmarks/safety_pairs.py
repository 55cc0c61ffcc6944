"""Two commands run on one study at the same moment."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from qua2sedimo.records import Records
from safety_book import EXPECTED, REFUSED, WRONG, Page
from safety_ground import COMMANDS, Child, Ground
from safety_study import essence, leftovers, rows, unequal

_EVERY = ("measure", "search", "choose", "frontier", "quantize", "observe", "export")
_OTHERS = ("fit", "quick", "polish", "explain", "records")
_NEW = (("observe", "observe"), ("observe", "quantize"), ("quantize", "quantize"), ("measure", "measure"),
        ("measure", "quantize"), ("search", "search"), ("search", "measure"), ("quick", "quick"), ("quick", "search"),
        ("quick", "observe"), ("frontier", "measure"))  # fmt: skip

#: What the first measures depends on what the other has measured by then.
_BY_EVIDENCE = ({"search", "measure"}, {"frontier", "measure"})


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
    alone = None if state != "new" or {a, b} in _BY_EVIDENCE else _one_by_one(ground, state, lines)
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

    Not asked where what one measures depends on what the other has measured so far.
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
            "frontier": ("frontier", "study", "--fresh-images", "4"),
            "choose": ("choose", "study", "--bits", "3.4", "--candidates", "2"),
            "search": ("search", "study", "--bits", "3.4", "--image-budget", "400"),
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
