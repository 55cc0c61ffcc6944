"""What kills, second processes, damage, full disks and rubbish do to a study.

    python benchmarks/safety.py [--quick] [--only kills,pairs,damage,full,rubbish] [--seed 0] [--docs]

Makes a tiny study and does to copies of it, command by command: kills at random moments and at random steps, up to
three in a row; two commands at the same moment; changed bits, bytes and lengths of every file; files that cannot grow,
and small disks if one can be mounted; places that are read-only; rubbish for every parameter and document. Every case
ends as expected (as if nothing had happened), with a clear error, or wrong. Prints a table, writes
benchmarks/results/safety.json, and with --docs the table of docs/safety.md. About 15 minutes on an idle core, with
--quick about 4.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

from pages import write_measured
from qua2sedimo.formats.files import write_json
from safety_cases import full_disk, killed_workers, kills, pairs, read_only
from safety_files import arguments, damage, documents
from safety_ground import EXPECTED, REFUSED, WRONG, Ground, Tally

RESULTS = Path(__file__).parent / "results"
KINDS = ("kills", "pairs", "damage", "full", "rubbish")
TITLES = {
    "kills": "killed, then run again", "workers": "killed with two workers", "pairs": "two at the same moment",
    "damage": "a damaged file", "full": "a full disk", "read-only": "a read-only study",
    "arguments": "rubbish arguments", "documents": "rubbish documents",
}  # fmt: skip


def cases(ground: Ground, only: list[str], quick: bool, seed: int) -> list[Tally]:
    """All cases of these kinds."""
    found: list[Tally] = []

    def go(name: str, work: Any, *more: Any) -> None:
        found.append(Tally(name))
        began = time.perf_counter()
        work(ground, found[-1], *more)
        cases = sum(sum(row.values()) for row in found[-1].counts.values())
        print(f"{TITLES[name]}: {cases} cases in {time.perf_counter() - began:.0f} s", flush=True)

    chance = random.Random(seed)
    if "kills" in only:
        go("kills", kills, 1 if quick else 3, chance)
        if not quick:
            go("workers", killed_workers, 2, chance)
    if "pairs" in only:
        go("pairs", pairs, 0.03 if quick else 0.25, chance)
    if "damage" in only:
        go("damage", damage, 1 if quick else 2, 0.3 if quick else 0.7, chance)
    if "full" in only:
        go("full", full_disk, 1 if quick else 2, chance)
        go("read-only", read_only)
    if "rubbish" in only:
        go("arguments", arguments, 1 if quick else 2, chance)
        go("documents", documents, 1 if quick else 2, chance)
    return found


def table(found: list[Tally]) -> str:
    """A row for each kind of case, in Markdown."""
    lines = ["| what was done | cases | as expected | clear error | wrong |", "|---|---|---|---|---|"]
    for tally in found:
        ends = [sum(row[end] for row in tally.counts.values()) for end in (EXPECTED, REFUSED, WRONG)]
        lines.append(f"| {TITLES[tally.kind]} | {sum(ends)} | {' | '.join(map(str, ends))} |")
    return "\n".join(lines)


def commands(found: list[Tally]) -> str:
    """A row for each command and kind, for the terminal."""
    return "\n".join(
        f"{TITLES[tally.kind]:24} {name:34} " + "  ".join(f"{end} {count}" for end, count in row.items() if count)
        for tally in found
        for name, row in sorted(tally.counts.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases of each kind")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", action="store_true", help="write the table of docs/safety.md")
    parser.add_argument("--work", type=Path, default=RESULTS / "safety")
    asked = parser.parse_args()
    ground = Ground(asked.work.resolve())
    ground.build()
    found = cases(ground, asked.only.split(","), asked.quick, asked.seed)
    print(f"\n{commands(found)}\n\n{table(found)}")
    wrong = [text for tally in found for text in tally.wrong]
    rows = {tally.kind: tally.counts for tally in found}
    write_json(RESULTS / "safety.json", {"seed": asked.seed, "quick": asked.quick, "rows": rows, "wrong": wrong})
    if asked.docs:
        write_measured("safety.md", table(found))
    if wrong:
        raise SystemExit(f"{len(wrong)} cases went wrong")


if __name__ == "__main__":
    main()
