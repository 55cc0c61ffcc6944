"""Options that were tried beside `row`: rotated inputs, scales for groups of inputs, codebooks in 8 bits.

    python benchmarks/option_trials.py [--models avatars-unet …] [--bits 2 3 4]

Uses the statistics of benchmarks/compensation.py's studies (run it first). For each trial, model and width: how many
layers have less output error than `row` **at equal bytes**, and by how many decibels on average. A trial's extra bytes
are charged by what `row` gains from its width to the next one, layer by layer. Writes results/option_trials.json.

- *rotated*: inputs turned by a block-Hadamard matrix of up to 64 inputs; no extra bytes.
- *groups of 64, 128*: a 16-bit scale for each group of inputs in each row, in place of one a row. Both sides by the
  plain loop of this file (no factors, no descent), so that only the scales differ.
- *row, in full*: `row` as it is used (ordered columns, factors, descent) over `row` by the plain loop, at the same
  bytes: what scales for groups give up, since columns of a group must stay together.
- *codebook in 8 bits*: a codebook a channel (K-Means C) with its levels in 8 bits and a 16-bit scale. Its error is
  taken with levels in 16 bits, which flatters it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import hadamard

from qua2sedimo import Study, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.quantizers import METHODS, Moment, dequantize_weight
from qua2sedimo.quantizers.row import gaussian_levels

RESULTS = Path(__file__).parent / "results"
_BLOCK = 64  # inputs that are mixed, at most
_GROUPS = (64, 128)
_DAMPING = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--bits", nargs="*", type=int, default=[2, 3, 4])
    asked = parser.parse_args()
    rows = []
    for model in asked.models:
        study = Study(RESULTS / "compensation" / f"{model}-0").workspace
        found: dict[tuple[str, int], list[float]] = {}
        for layer in study.space.layers:
            moment, weight = study.observed(layer).moment, study.weight(layer)
            if moment is not None:
                for key, gain in gains(weight, moment, asked.bits).items():
                    found.setdefault(key, []).append(gain)
        for (trial, bits), of in found.items():
            rows.append({
                "model": model, "trial": trial, "bits": bits, "layers": len(of), "better": int(sum(g > 0 for g in of)),
                "mean_gain_db": round(float(np.mean(of)), 2), "best_gain_db": round(max(of), 2),
                "worst_gain_db": round(min(of), 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
        write_json(RESULTS / "option_trials.json", rows)


def gains(weight: torch.Tensor, moment: Moment, bits: Sequence[int]) -> dict[tuple[str, int], float]:
    """Decibels that each trial gains at each width over `row` of as many bytes."""
    channels, inputs = len(weight), weight[0].numel()
    widths = [*bits, max(bits) + 1]
    plain = dict(zip(widths, errors(weight, moment, widths)))
    turned = dict(zip(bits, errors(weight, moment, bits, rotate=True)))
    books = METHODS["kmeans_c"].quantize(weight, bits, moment)
    rows = weight.float().reshape(channels, -1)
    found: dict[tuple[str, int], float] = {}
    for b, book in zip(bits, books):
        a_bit = _decibels(plain[b], plain[b + 1]) if b + 1 in plain else 6.0
        found["rotated", b] = _decibels(plain[b], turned[b])
        error = float(moment.errors(rows - dequantize_weight(book).float().reshape(channels, -1)).sum())
        found["codebook in 8 bits", b] = _decibels(plain[b], error) - a_bit * 8 * 2**b / inputs
        one = grouped(rows, moment, b, inputs)
        found["row, in full", b] = _decibels(one, plain[b])
        for size in _GROUPS:
            if inputs >= 2 * size:
                extra = 16 * (math.ceil(inputs / size) - 1) / inputs
                found[f"groups of {size}", b] = _decibels(one, grouped(rows, moment, b, size)) - a_bit * extra
    return found


def _decibels(before: float, after: float) -> float:
    return 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0


def errors(weight: torch.Tensor, moment: Moment, bits: Sequence[int], rotate: bool = False) -> list[float]:
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


def grouped(rows: torch.Tensor, moment: Moment, bits: int, size: int) -> float:
    """Output error of Gaussian levels times a scale for ``size`` inputs of a row, compensated column by column.

    Columns stay in natural order, as groups ask for; each group's scale is fitted to its weights when it is reached.
    """
    total = 0.0
    levels = torch.tensor(gaussian_levels(bits)).double()
    for a, b in moment.spans():
        h, w = moment.blocks[moment.spans().index((a, b))].double(), rows[:, a:b].double().clone()
        original, n = w.clone(), b - a
        damped = h + torch.eye(n).double() * (_DAMPING * float(h.diagonal().mean()) + 1e-12)
        upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
        rounded, scale = torch.empty_like(w), torch.ones(len(w), 1).double()
        for j in range(n):
            if j % size == 0:
                scale = _scale(w[:, j : j + size], levels)
            column = w[:, j : j + 1]
            rounded[:, j : j + 1] = scale * levels[_nearest(column / scale, levels)]
            step = (column - rounded[:, j : j + 1]) / upper[j, j]
            w[:, j + 1 :] -= step @ upper[j : j + 1, j + 1 :]
        change = original - rounded
        total += float(torch.einsum("ri,ij,rj->", change, h, change))
    return total


def _scale(w: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The least-squares scale of each row's levels [rows, 1], by alternation; as stored in 16 bits."""
    scale = w.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8)
    for _ in range(4):
        picked = levels[_nearest(w / scale, levels)]
        scale = ((w * picked).sum(1, keepdim=True) / picked.square().sum(1, keepdim=True)).clamp(min=1e-8)
    return scale.half().clamp(min=6e-8).double()


def _nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)


if __name__ == "__main__":
    main()
