"""What kills, second processes, damage, full disks and rubbish do to a study.

    python benchmarks/safety.py [--quick] [--only kills,workers,pairs,disk,…] [--units WORD] [--seed 0] [--docs]

Makes a tiny study and does to copies of it, command by command: kills in every stage, up to three in a row, with
workers too; two commands at the same moment; changed bits, bytes and lengths of files of a study and of exports; small
disks, files that cannot grow, places that are read-only; rubbish for every parameter and in place of every document.
Every case ends as expected (as if nothing had happened), with a clear error, or wrong. Finished cases are lines of
benchmarks/results/safety.jsonl, so that a run that was interrupted goes on; a change of the program begins anew.
Prints tables, and with --docs writes those of docs/safety.md. About 15 minutes on two idle cores, with --quick 5.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import zip_longest
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import own_source  # the package of this repository, before anything else imports it
from pages import write_measured
from qua2sedimo.formats.files import write_json
from qua2sedimo.formats.locks import alone
from safety_book import TITLES, WRONG, Book, Page, by_name, cases_of, kills_by_moment, summary
from safety_disks import full_disk, limited_files, read_only
from safety_files import LINES, arguments, damage, damaged_places, document_places, documents
from safety_ground import COMMANDS, Ground, die_with_parent, own_mounts
from safety_kills import WITH_WORKERS, killed_workers, kills
from safety_pairs import pair_names, pairs

RESULTS = Path(__file__).parent / "results"
WORK: dict[str, Callable[[Ground, Page], None]] = {
    "kills": kills, "workers": killed_workers, "pairs": pairs, "disk": full_disk, "limit": limited_files,
    "read-only": read_only, "arguments": arguments, "damage": damage, "documents": documents,
}  # fmt: skip
_here: list[Any] = []  # of a worker: its ground and its book


def units(ground: Ground, quick: bool) -> dict[str, list[str]]:
    """The units of work of each kind."""
    every = list(COMMANDS)
    return {
        "workers": ["search"] if quick else list(WITH_WORKERS),
        "kills": every, "pairs": pair_names(quick), "disk": every, "limit": every, "read-only": every,
        "arguments": sorted(set(LINES) - {"demo"}), "damage": damaged_places(), "documents": document_places(ground),
    }  # fmt: skip


def begin(ground: Ground, book: Book, number: Synchronized) -> None:
    """Make this process a worker with a folder of its own."""
    die_with_parent()
    with number.get_lock():
        number.value += 1
        ground.at = number.value
    _here[:] = [ground, book]


def finish(kind: str, name: str) -> tuple[str, str, float]:
    """All cases of a unit that have no row yet."""
    ground, book = _here
    began, page = time.perf_counter(), Page(book, kind, name)
    if not page.finished:
        WORK[kind](ground, page)
        page.finish()
    return kind, name, time.perf_counter() - began


def lacking(ground: Ground, book: Book, only: Sequence[str], words: str) -> list[tuple[str, str]]:
    """The units of these kinds that are not finished, in turn one of each kind."""
    named = {kind: [name for name in names if words in name] for kind, names in units(ground, book.quick).items()}
    rounds = zip_longest(*([(kind, name) for name in names] for kind, names in named.items() if kind in only))
    return [one for round_ in rounds for one in round_ if one is not None and not Page(book, *one).finished]


def run(ground: Ground, book: Book, wanted: Sequence[tuple[str, str]], workers: int) -> None:
    """Try all cases of these units that have no row yet."""
    context = get_context("fork")
    number = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, begin, (ground, book, number)) as pool:
        for done, ended in enumerate(as_completed([pool.submit(finish, *one) for one in wanted]), 1):
            kind, name, seconds = ended.result()
            print(f"{done} of {len(wanted)}: {TITLES[kind]}: {name}, {seconds:.0f} s", flush=True)


def page_text(rows: Sequence[dict[str, Any]], left: int) -> str:
    """What docs/safety.md says; ``left``: units of work that are not finished."""
    cases = cases_of(rows)
    minutes = sum(row["cpu"] for row in rows) / 60
    rest = f"; {left} commands or files are not finished" if left else ""
    kinds = ("kills", "workers", "pairs", "disk", "limit", "read-only", "arguments")
    return "\n\n".join(
        [
            summary(cases),
            f"All this took {minutes:.0f} minutes of one core, those of Ray's workers not counted{rest}. In the next "
            "tables, a cell says how many cases ended as expected · with a clear error · wrong. A pair counts for both "
            "of its commands.",
            by_name(cases, kinds, "command"),
            by_name(cases, ("damage", "documents"), "files"),
            f"What commands were doing when they were killed: {kills_by_moment(cases)}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases of each kind")
    parser.add_argument("--only", default=",".join(WORK), help="kinds, separated by commas")
    parser.add_argument("--units", default="", help="only commands or files whose names hold this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="cases at the same time")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/safety.md")
    parser.add_argument("--table", action="store_true", help="only print, and write, what was tried so far")
    parser.add_argument("--work", type=Path, default=RESULTS / "safety")
    asked = parser.parse_args()
    print(f"testing {own_source.verified()}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    with alone(RESULTS, lambda: print("waiting for another run"), "safety"):
        began = time.perf_counter()
        ground = Ground(asked.work.resolve(), own_mounts())
        ground.build()
        print(f"a study in every state, made in {time.perf_counter() - began:.0f} s", flush=True)
        book = Book(RESULTS / "safety.jsonl", asked.seed, asked.quick)
        wanted = lacking(ground, book, asked.only.split(","), asked.units)
        run(ground, book, [] if asked.table else wanted, asked.workers)
        rows, left = book.rows(), len(lacking(ground, book, list(WORK), ""))
    wrong = [row for row in rows if row.get("end") == WRONG]
    print(f"\n{page_text(rows, left)}")
    write_json(RESULTS / "safety.json", {**book.way, "rows": cases_of(rows)})
    if asked.docs:
        write_measured("safety.md", page_text(rows, left))
    if wrong:
        sys.exit(f"{len(wrong)} cases went wrong")


if __name__ == "__main__":
    main()
