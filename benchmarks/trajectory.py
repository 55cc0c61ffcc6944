"""Is the denoiser's error along full-precision trajectories a cheaper measurement than pictures?

    python benchmarks/trajectory.py [--models digits-dit …] [--calls 10] [--work FOLDER]
    python benchmarks/trajectory.py --docs       # only write the table of docs/metrics.md

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from compensation import ROOT, opened
from gradients import KINDS
from gradients import ROWS as MEASURED
from pages import write_table
from qua2sedimo import zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.options import Configuration
from qua2sedimo.statistics import RecordedCall

ROWS = ROOT / "docs" / "figures" / "trajectory.json"
_FEW, _COUNTS, _DRAWS = (2, 4, 8), (2, 5, 10), 20  # images of PSNR; calls; random halves and subsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--calls", type=int, default=max(_COUNTS))
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    parser.add_argument("--docs", action="store_true", help="Only write the table of the page.")
    asked = parser.parse_args()
    kept: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    measured = json.loads(MEASURED.read_text())
    for model in [] if asked.docs else (m for m in asked.models if m in measured):
        inside = opened(asked, model, 0).workspace
        rows, of = measured[model]["measured"], kept.setdefault(model, {"errors": {}})
        inside.switch.restore()
        meter = Trajectory(inside.parts[0].denoiser, inside.statistics.calls.some(asked.calls))
        for name in (n for n in rows if n not in of["errors"]):
            inside.switch.apply(Configuration.from_json(rows[name]["configuration"]))
            of["errors"][name] = [float(f"{e:.4g}") for e in meter()]
            if len(of["errors"]) % 20 == 0:
                write_json(ROWS, kept)
        inside.switch.restore()
        of["found"] = ranked(of["errors"], rows, inside.settings.arguments["num_inference_steps"])
        write_json(ROWS, kept)
        print(model, json.dumps(of["found"], indent=1))
    write_docs(kept)


class Trajectory:
    """The squared error of the guided output in each of some calls, of one image each."""

    def __init__(self, denoiser: torch.nn.Module, calls: Sequence[RecordedCall]) -> None:
        self._denoiser = denoiser
        chosen = [_one(call, number) for number, call in enumerate(calls)]
        with torch.no_grad():
            self._calls = [(call, call.run(denoiser)[0]) for call in chosen]

    def __call__(self) -> list[float]:
        """The mean over the output, for each call, of what the denoiser as it is now does otherwise."""
        found = []
        with torch.no_grad():
            for call, full in self._calls:
                # A cotangent is the guided output's derivative times a random sign, the same in all samples that guide
                # one image: their sum is the error of the guided output times this sign.
                weighed = (call.run(self._denoiser)[0] - full) * call.cotangents[0]
                found.append(float(weighed.sum(dim=0).square().mean()))
        return found


def _one(call: RecordedCall, number: int) -> RecordedCall:
    """The samples of one image of a call: those whose cotangents have the same signs."""
    signs = torch.sign(call.cotangents[0].flatten(1))
    first = signs[number % len(signs)]
    agree = (signs * first).sum(dim=1).abs() >= (first != 0).sum()
    own = agree.nonzero().flatten()

    def part(leaf: Any) -> Any:
        return leaf[own] if torch.is_tensor(leaf) and leaf.dim() and len(leaf) == len(signs) else leaf

    args, kwargs, cotangents = torch.utils._pytree.tree_map(part, (call.args, call.kwargs, call.cotangents))
    return RecordedCall(args, kwargs, cotangents, call.used)


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


if __name__ == "__main__":
    main()
