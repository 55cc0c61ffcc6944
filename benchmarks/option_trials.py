"""Options that were tried and not kept: output error of `row` with the inputs rotated by a block-Hadamard matrix.

    python benchmarks/option_trials.py [--models avatars-unet …] [--bits 2 3 4]

Uses the statistics of benchmarks/compensation.py's studies (run it first). Prints, for each model and width, how many
layers are better rotated, by output error at equal bytes, and the mean difference in decibels; writes
results/option_trials.json.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import hadamard

from qua2sedimo import Study, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.quantizers import METHODS, Moment, dequantize_weight

RESULTS = Path(__file__).parent / "results"
_BLOCK = 64  # inputs that are mixed, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--bits", nargs="*", type=int, default=[2, 3, 4])
    asked = parser.parse_args()
    rows = []
    for model in asked.models:
        study = Study(RESULTS / "compensation" / f"{model}-0").workspace
        found: dict[int, list[float]] = {bits: [] for bits in asked.bits}
        for layer in study.space.layers:
            moment, weight = study.observed(layer).moment, study.weight(layer)
            if moment is None:
                continue
            plain, turned = (errors(weight, moment, asked.bits, rotate) for rotate in (False, True))
            for bits, a, b in zip(asked.bits, plain, turned):
                found[bits].append(10 * math.log10(a / b) if a > 0 and b > 0 else 0.0)
        for bits, gains in found.items():
            rows.append({
                "model": model, "bits": bits, "layers": len(gains), "better": int(sum(g > 0 for g in gains)),
                "mean_gain_db": round(float(np.mean(gains)), 2), "best_gain_db": round(max(gains), 2),
                "worst_gain_db": round(min(gains), 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
    write_json(RESULTS / "option_trials.json", rows)


def errors(weight: torch.Tensor, moment: Moment, bits: list[int], rotate: bool) -> list[float]:
    """Output error of `row` at each width, with the inputs as they are or rotated."""
    rows = weight.float().reshape(len(weight), -1)
    rotation = torch.eye(rows.shape[1])
    if rotate:
        size = math.gcd(rows.shape[1], _BLOCK)
        rotation = torch.block_diag(*[torch.tensor(hadamard(size) / math.sqrt(size))] * (rows.shape[1] // size)).float()
    turned = (rows @ rotation).to(weight.dtype)
    blocks, under = [], rotation.T @ torch.block_diag(*moment.blocks) @ rotation
    for a, b in moment.spans():
        blocks.append(under[a:b, a:b].contiguous())
    values = METHODS["row"].quantize(turned, bits, Moment(tuple(blocks)))
    return [float(moment.errors(rows - dequantize_weight(v).float() @ rotation.T).sum()) for v in values]


if __name__ == "__main__":
    main()
