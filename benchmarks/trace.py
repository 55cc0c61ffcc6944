"""Graphs of the paper's denoisers at full size, from their configurations alone: seconds and memory.

    python benchmarks/trace.py [CONFIG.json ...]

Each in a process of its own, so that its peak memory is its own. Writes benchmarks/results/trace.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "tests" / "denoisers" / "configs"
COLUMNS = ("model", "layers", "weights", "parts", "nodes", "edges", "tied", "bypassed", "seconds", "peak_mb")


def measured(config: Path) -> dict[str, object]:
    """One row, by tracing in this process."""
    from qua2sedimo.denoisers import architecture, built_inputs, trace, weight_layers

    start = time.perf_counter()
    denoiser = architecture(config)
    graph = trace(denoiser, (), built_inputs(denoiser), parts=True)
    seconds = time.perf_counter() - start
    layers = weight_layers(denoiser)
    return {
        "model": config.stem,
        "layers": len(layers),
        "weights": sum(layer.weights for layer in layers.values()),
        "parts": sum(unit.span is not None for unit in graph.layers.values()),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "tied": sum(map(len, graph.tied_candidates)),
        "bypassed": len(graph.bypassed),
        "seconds": round(seconds, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG.json", help="all of the tests' unless given")
    parser.add_argument("--one", type=Path, help="trace this one here, and print its row as JSON")
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(measured(asked.one)))
        return
    rows = []
    print("".join(f"{column:>{18 if column in ('model', 'weights') else 9}}" for column in COLUMNS))
    for config in asked.configs or sorted(CONFIGS.glob("*.json")):
        ended = subprocess.run([sys.executable, __file__, "--one", config], capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"{config}: {ended.stderr}")
        rows.append(json.loads(ended.stdout.splitlines()[-1]))
        print("".join(f"{rows[-1][c]:>{18 if c in ('model', 'weights') else 9}}" for c in COLUMNS))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "trace.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
