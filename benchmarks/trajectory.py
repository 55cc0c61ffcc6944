"""Is the denoiser's error along full-precision trajectories a cheaper measurement than pictures?

    python benchmarks/trajectory.py [--models digits-dit …] [--calls 10] [--work FOLDER]
    python benchmarks/trajectory.py --search     # a search by this error, from the choice by gradients at 2.5 bits
    python benchmarks/trajectory.py --docs       # only write the tables of docs/metrics.md

The configurations, and their PSNR on 16 images, are those of benchmarks/gradients.py (run it first). For each, recorded
calls of the denoiser are run again, one image each, at steps spread over the schedule; what counts is the mean over
calls of ln of the squared error of the guided output. Its rank correlation with PSNR stands beside those of PSNR on
few of the images with the others, and of expected damage, which needs no measurement. Rows are kept in
docs/figures/trajectory.json: stopped, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from compensation import ROOT, Judge, opened
from gradients import KINDS
from gradients import ROWS as MEASURED
from pages import write_table
from qua2sedimo import Study, zoo
from qua2sedimo.damage import DECIBEL
from qua2sedimo.formats.files import write_json
from qua2sedimo.metrics.estimates import mean_estimate
from qua2sedimo.options import Configuration
from qua2sedimo.search import Measured, best_configurations, by_gradients, drawn, most_likely
from qua2sedimo.statistics import OutputDifference

ROWS = ROOT / "docs" / "figures" / "trajectory.json"
_BITS, _SEARCHED, _JUDGED = 2.5, 240, 64  # of --search: size, configurations measured, fresh images
_FEW, _COUNTS, _DRAWS = (2, 4, 8), (2, 5, 10), 20  # images of PSNR; calls; random halves and subsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--calls", type=int, default=max(_COUNTS))
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    parser.add_argument("--search", action="store_true", help="Search by this error, and judge by pictures.")
    parser.add_argument("--docs", action="store_true", help="Only write the tables of the page.")
    asked = parser.parse_args()
    kept: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    measured = json.loads(MEASURED.read_text())
    for model in [] if asked.docs else (m for m in asked.models if m in measured):
        study = opened(asked, model, 0)
        inside = study.workspace
        if asked.search:
            kept.setdefault(model, {"errors": {}})["searched"] = searched(study, asked.calls)
            write_json(ROWS, kept)
            continue
        rows, of = measured[model]["measured"], kept.setdefault(model, {"errors": {}})
        inside.switch.restore()
        meter = OutputDifference(inside.parts[0].denoiser, inside.statistics.calls.some(asked.calls))
        for name in (n for n in rows if n not in of["errors"]):
            inside.switch.apply(Configuration.from_json(rows[name]["configuration"]))
            of["errors"][name] = [float(f"{e:.4g}") for e in meter().tolist()]
            if len(of["errors"]) % 20 == 0:
                write_json(ROWS, kept)
        inside.switch.restore()
        of["found"] = ranked(of["errors"], rows, inside.settings.arguments["num_inference_steps"])
        write_json(ROWS, kept)
        print(model, json.dumps(of["found"], indent=1))
    write_docs(kept)


def searched(study: Study, calls: int) -> dict[str, Any]:
    """Configurations of 2.5 bits near the choice by gradients, measured by the error along trajectories in rounds as a
    search would measure pictures: the best of them and the choice by gradients, on fresh pictures, not polished."""
    inside = study.workspace
    space, known, chance = inside.space, inside.unmeasured, np.random.default_rng(0)
    nbytes, judge = int(_BITS * space.weights / 8), Judge(study, _JUDGED)
    inside.switch.restore()
    difference = OutputDifference(inside.parts[0].denoiser, inside.statistics.calls.some(calls))
    first = next(best_configurations(space, by_gradients(known), nbytes))
    seen: dict[Configuration, float] = {}
    while len(seen) < _SEARCHED:
        values = [most_likely(known), *(drawn(known, chance, spread) for spread in (1, 1, 2, 1, 1, 2, 1))]
        proposed = [first, *(next(best_configurations(space, of, nbytes)) for of in values)]
        for configuration in (c for c in dict.fromkeys(proposed) if c not in seen):
            inside.switch.apply(configuration)
            seen[configuration] = -float(difference().log().mean()) / DECIBEL
        known = replace(inside.unmeasured, measured=[Measured(1, c, quality) for c, quality in seen.items()])
    best = max(seen, key=seen.__getitem__)
    before, after = (judge(inside.bank.values(c)) for c in (first, best))
    gain = mean_estimate(np.array(after["values"]) - np.array(before["values"]))
    row = {
        "measured": len(seen), "error_db": round(seen[best] - seen[first], 2), "gain": round(gain.value, 2),
        "low": round(gain.low, 2), "high": round(gain.high, 2),
    }  # fmt: skip
    print(study.workspace.settings.model, json.dumps(row), flush=True)
    return row


def ranked(errors: Mapping[str, Sequence[float]], rows: Mapping[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation with PSNR by what was measured, and on how many (image, step) pairs."""
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        names = [n for n in rows if n.startswith(kind)]
        quality, logs = np.array([rows[n]["psnr"] for n in names]), -np.log([errors[n] for n in names])
        for count in (c for c in _COUNTS if c <= logs.shape[1]):
            drawn = [np.random.default_rng(s).permutation(logs.shape[1])[:count] for s in range(_DRAWS)]
            values = [_correlation(logs[:, which].mean(axis=1), quality.mean(axis=1)) for which in drawn]
            found.setdefault(f"trajectory, {count} pairs", {})[kind] = round(float(np.mean(values)), 3)
        for count in _FEW:
            values = []
            for split in range(_DRAWS):
                order = np.random.default_rng(split).permutation(quality.shape[1])
                halves = quality[:, order[:count]].mean(axis=1), quality[:, order[count:]].mean(axis=1)
                values.append(_correlation(*halves))
            label = f"PSNR of {count} images, {count * steps} pairs"
            found.setdefault(label, {})[kind] = round(float(np.mean(values)), 3)
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def write_docs(kept: Mapping[str, Any]) -> None:
    """Replace the table between the markers of docs/metrics.md."""
    models = [model for model in kept if "found" in kept[model]]
    if not models:
        return
    lines = ["| measured | " + " | ".join(models) + " |", "|" + "---|" * (len(models) + 1)]
    for name in kept[models[0]]["found"]:
        cells = [" · ".join(f"{kept[m]['found'][name][kind]:.2f}" for kind in KINDS) for m in models]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    write_table("metrics.md", "trajectory", lines)
    rows = {model: of["searched"] for model, of in kept.items() if "searched" in of}
    lines = ["| model | configurations measured | error falls by, dB | gain in PSNR, dB [95 %] |", "|---|---|---|---|"]
    for model, row in rows.items():
        interval = f"{row['gain']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        lines.append(f"| {model} | {row['measured']} | {row['error_db']:.2f} | {interval} |")
    if rows:
        write_table("metrics.md", "trajectory-search", lines)


if __name__ == "__main__":
    main()
