"""Finished cases as lines of a file, so that an interrupted run goes on where it was; and tables of them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from own_source import ROOT, SOURCE

#: How a case may end.
EXPECTED, REFUSED, WRONG = "as expected", "clear error", "wrong"
ENDS = (EXPECTED, REFUSED, WRONG)
#: What was done, in the order of the tables.
TITLES = {
    "kills": "killed, then run again", "workers": "killed with two workers, then run again",
    "pairs": "two commands at the same moment", "disk": "a full disk", "limit": "files that cannot grow",
    "read-only": "a read-only place", "arguments": "rubbish arguments", "damage": "a damaged file",
    "documents": "rubbish in place of a file",
}  # fmt: skip
_DONE = "all"


#: What all kinds of cases share, and what each is made by.
_SHARED = ("own_source.py", "safety_ground.py", "safety_study.py")
_SCRIPTS = {
    "kills": "safety_kills.py", "workers": "safety_kills.py", "pairs": "safety_pairs.py", "disk": "safety_disks.py",
    "limit": "safety_disks.py", "read-only": "safety_disks.py", "arguments": "safety_files.py",
    "damage": "safety_files.py", "documents": "safety_files.py",
}  # fmt: skip


def _digest(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Book:
    """Rows of this version of the program and of the script of their kind, with this seed and this number of cases."""

    def __init__(self, path: Path, seed: int, quick: bool) -> None:
        self.path, self.quick = path, quick
        self.way = {"source": _digest(sorted(SOURCE.rglob("*.py"))), "seed": seed, "quick": quick}
        here = ROOT / "benchmarks"
        self.scripts = {kind: _digest(here / name for name in (*_SHARED, own)) for kind, own in _SCRIPTS.items()}

    def rows(self) -> list[dict[str, Any]]:
        """All rows, of finished cases and of finished units; a last line that a kill cut is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if self._about(row["kind"]).items() <= row.items():
                found.append(row)
        return found

    def add(self, row: dict[str, Any]) -> None:
        line = json.dumps({**self._about(row["kind"]), **row}) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def _about(self, kind: str) -> dict[str, Any]:
        return {**self.way, "script": self.scripts[kind]}


@dataclass
class Page:
    """The cases of one unit of work: of one kind, of one command or file."""

    book: Book
    kind: str
    name: str

    def __post_init__(self) -> None:
        self._known = {row["case"] for row in self.book.rows() if (row["kind"], row["unit"]) == (self.kind, self.name)}
        self._cpu = _cpu()

    @property
    def finished(self) -> bool:
        return _DONE in self._known

    def lacking(self, cases: Iterable[Any]) -> list[Any]:
        """Those of these cases that have no row yet."""
        return [case for case in cases if str(case) not in self._known]

    def chance(self, case: Any) -> random.Random:
        """Random numbers that depend on the case alone."""
        return random.Random(f"{self.book.way['seed']} {self.kind} {self.name} {case}")

    def add(self, case: Any, end: str, note: str = "", **more: Any) -> None:
        """Keep a case; what went wrong is printed."""
        cpu, self._cpu = _cpu() - self._cpu, _cpu()
        row = {"kind": self.kind, "unit": self.name, "case": str(case), "end": end, "cpu": round(cpu, 2), **more}
        self.book.add({**row, "note": note} if end == WRONG else row)
        if end == WRONG:
            print(f"  wrong: {self.kind}: {self.name}: {case}: {note[:2500]}", flush=True)

    def finish(self) -> None:
        spent = round(_cpu() - self._cpu, 2)
        self.book.add({"kind": self.kind, "unit": self.name, "case": _DONE, "cpu": spent})


def _cpu() -> float:
    """Seconds of the processor, of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# Tables -------------------------------------------------------------------------------------------------------------


def cases_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["case"] != _DONE]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each kind of case, in Markdown."""
    lines = ["| what was done | cases | as expected | clear error | wrong |", "|---|---|---|---|---|"]
    for kind, title in TITLES.items():
        own = [row for row in rows if row["kind"] == kind]
        kills = sum(row.get("kills", 0) for row in own)
        counts = " | ".join(str(sum(row["end"] == end for row in own)) for end in ENDS)
        lines.append(f"| {title}{f' ({kills} kills)' if kills else ''} | {len(own)} | {counts} |")
    return "\n".join(lines)


def by_name(rows: Sequence[dict[str, Any]], kinds: Sequence[str], what: str) -> str:
    """A row for each command or file, a column for each of these kinds, in Markdown."""
    own = [row for row in rows if row["kind"] in kinds]
    names = sorted({name for row in own for name in _names(row)})
    lines = [f"| {what} | {' | '.join(TITLES[kind] for kind in kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name in names:
        cells = [_cell([row for row in own if row["kind"] == kind and name in _names(row)]) for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kills_by_moment(rows: Sequence[dict[str, Any]]) -> str:
    """What commands were doing when they were killed, with the number of kills."""
    found: dict[str, int] = {}
    for row in rows:
        for moment in row.get("moments", ()):
            found[moment] = found.get(moment, 0) + 1
    return ", ".join(f"{moment} {count}" for moment, count in sorted(found.items(), key=lambda one: (-one[1], one[0])))


def _names(row: dict[str, Any]) -> set[str]:
    return set(row.get("of", [row["unit"]]))


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    counts = [sum(row["end"] == end for row in rows) for end in ENDS]
    return " · ".join(map(str, counts)) if rows else ""
