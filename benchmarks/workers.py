"""What the start of workers costs beside measuring in one process.

    python benchmarks/workers.py [--model digits-dit] [--workers 2] [--configurations 8] [--images 16] [--work FOLDER]

Bank and full-precision images are on disk before. Prints seconds until Ray's first and last worker were ready, beside
those that a plain process takes to get as far (imports, pipeline, bank, images), and seconds a configuration of
both. Ray's workers get the niceness of this process. Writes benchmarks/results/workers.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qua2sedimo.commands.app import settings_for
from qua2sedimo.formats.files import write_json
from qua2sedimo.study import Study
from qua2sedimo.study.stages.measure import Workers

RESULTS = Path(__file__).parent / "results"
OPTIONS = "uaq-2,uaq-3,uaq-4,kmeans_a-3"
PLAIN = (
    "import sys; from qua2sedimo.study.stages.measure import open_worker; open_worker(sys.argv[1], 0, int(sys.argv[2]))"
)


def measure(study: Study, configurations: int, workers: Workers) -> tuple[dict[int, float], list[float]]:
    """(workers ready → seconds, seconds at which each configuration was done), from the call on."""
    began = time.perf_counter()
    ready: dict[int, float] = {}
    done: list[float] = []

    def watch(count: int, total: int, what: str) -> None:
        if what.startswith("starting"):
            ready.setdefault(count, time.perf_counter() - began)
        else:
            done.append(time.perf_counter() - began)

    study.measure(configurations, watch, workers)
    return ready, done[1:]  # the first tells what was there before


def row(asked: argparse.Namespace) -> dict[str, Any]:
    folder = asked.work / asked.model
    shutil.rmtree(folder, ignore_errors=True)
    study = Study.create(folder, settings_for(asked.model, None, "{}", OPTIONS, asked.images, None, 0))
    study.quantize()
    _, here = measure(study, asked.configurations, Workers())
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", PLAIN, str(folder), str(asked.images)], check=True)
    plain = time.perf_counter() - began
    ready, done = measure(study, 2 * asked.configurations, Workers(asked.workers))
    last = max(ready.values())
    each = (done[-1] - last) / max(1, sum(at > last for at in done))
    return {
        "model": asked.model, "workers": asked.workers, "plain_start": plain, "first_ready": min(ready.values()),
        "last_ready": last, "here": (here[-1] - here[0]) / (len(here) - 1), "with_workers": each,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-dit")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--configurations", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--work", type=Path, default=RESULTS / "workers")
    asked = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", str(os.nice(0)))
    found = row(asked)
    plain = found["plain_start"]
    print(f"a plain process is ready after {plain:.1f} s")
    for name in ("first_ready", "last_ready"):
        print(f"of {asked.workers} workers the {name.split('_')[0]} is ready after {found[name]:.1f} s", end="")
        print(f" ({found[name] / plain:.2f} times as long)")
    gain = found["here"] / found["with_workers"]
    print(
        f"a configuration: {found['here']:.2f} s here, {found['with_workers']:.2f} s with workers ({gain:.2f}× as fast)"
    )
    saved = found["here"] - found["with_workers"]
    if saved > 0:
        print(f"workers are done sooner from about {found['last_ready'] / saved:.0f} configurations on")
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "workers.json", found)


if __name__ == "__main__":
    main()
