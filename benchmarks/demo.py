"""Wall time and peak memory of `qua2sedimo demo`, from an empty folder, and the table it prints.

    python benchmarks/demo.py [--model avatars-pixart]

Writes benchmarks/results/demo-MODEL.json and keeps the study in benchmarks/results/MODEL for the other benchmarks.
Peak memory is the sum over the process and its children of resident memory, sampled four times a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def resident_bytes(process: int) -> int:
    """Resident memory of a process and its descendants (Linux)."""
    total, waiting = 0, [process]
    while waiting:
        number = waiting.pop()
        try:
            status = Path(f"/proc/{number}/status").read_text()
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        except OSError:  # it has ended
            continue
        total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        waiting += map(int, children)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="avatars-pixart")
    model = parser.parse_args().model
    shutil.rmtree(RESULTS / model, ignore_errors=True)
    command = [sys.executable, "-m", "qua2sedimo.cli", "demo", "--model", model, "--out", str(RESULTS)]
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as running:
        while running.poll() is None:
            peak = max(peak, resident_bytes(running.pid))
            time.sleep(0.25)
    seconds = time.perf_counter() - began
    if running.returncode:
        sys.exit(running.returncode)
    table = json.loads((RESULTS / model / "table.json").read_text())
    result = {"model": model, "seconds": round(seconds, 1), "peak_bytes": peak, "table": table}
    (RESULTS / f"demo-{model}.json").write_text(json.dumps(result, indent=1))
    print(f"{model}: {seconds:.0f} s, peak {peak / 1e9:.2f} GB resident")


if __name__ == "__main__":
    main()
