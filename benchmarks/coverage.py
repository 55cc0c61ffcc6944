"""Every transformer, U-Net and pipeline class of diffusers from a small configuration: does it get through?

    python benchmarks/coverage.py [--docs] [--fresh] [--kept] [--jobs 1] [--limit 900] [--only PATTERN]

Builds each class of tests/denoisers/coverage with random weights, traces it, quantizes and packs every layer and part,
loads the file with stock diffusers, and compares the outputs; then asks what people do with such models. Takes each
pipeline class of tests/sweep through a study, and asks the same of it. Each class runs in a process of its own, for at
most LIMIT seconds. Prints a line for each, and writes benchmarks/results/coverage.json and, with --docs, the page
docs/coverage.md. About an hour of an idle core.

Rows are kept in benchmarks/results/coverage, and made again when the versions, the questions or the class's small
instance change, or with --fresh: do that after changes of the package itself.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.denoisers.coverage.registry import FAMILIES, exported  # noqa: E402
from tests.sweep.entries import ENTRIES  # noqa: E402
from tests.sweep.registry import in_scope  # noqa: E402

from coverage_page import page  # noqa: E402
from coverage_rows import Row, rows  # noqa: E402
from qua2sedimo.formats.files import write_json, write_text  # noqa: E402


def said(row: Row) -> str:
    """What is not right about a class, in a line."""
    if "failed" in row:
        return f"FAILED: {row['failed']}"
    wrong = [row["wrong"]] if row["wrong"] else []
    wrong += [f"{question}: {a}" for question, a in row["answers"].items() if a != "yes" and not a.startswith("n/a")]
    return "; ".join(wrong) or "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write docs/coverage.md too")
    parser.add_argument("--fresh", action="store_true", help="make all rows again")
    parser.add_argument("--jobs", type=int, default=1, help="classes at a time")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a class")
    parser.add_argument("--kept", action="store_true", help="run nothing: the page of the rows that are there")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="classes with names like this; no files")
    arguments = parser.parse_args()
    there, scope = exported(), in_scope()
    kinds = {
        "denoiser": [name for entries in FAMILIES.values() for name in entries if name in there],
        "pipeline": [name for name in ENTRIES if name in scope],
    }
    found: dict[str, Row] = {}
    began = time.perf_counter()
    for kind, names in kinds.items():
        names = [name for name in names if fnmatch.fnmatch(name, arguments.only)]
        jobs = 0 if arguments.kept else arguments.jobs
        for number, (row, kept) in enumerate(rows(kind, names, arguments.limit, jobs, arguments.fresh), 1):
            found[row["class"]] = row
            how = "kept" if kept else f"{row['seconds']:.0f} s"
            minutes = (time.perf_counter() - began) / 60
            print(f"{minutes:5.1f} min  {number:3}/{len(names)}  {row['class']:<44} {how:>6}  {said(row)}", flush=True)
    if arguments.only != "*":
        return
    families = {family: [found[name] for name in names if name in found] for family, names in FAMILIES.items()}
    walks = [found[name] for name in kinds["pipeline"] if name in found]
    waiting = [name for names in kinds.values() for name in names if name not in found]
    write_json(ROOT / "benchmarks" / "results" / "coverage.json", {"denoisers": families, "pipelines": walks})
    if arguments.docs:
        write_text(ROOT / "docs" / "coverage.md", page(families, walks, waiting))


if __name__ == "__main__":
    main()
