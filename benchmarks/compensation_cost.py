"""What compensated options cost at real size: seconds and memory for the layers of a published denoiser.

    OMP_NUM_THREADS=1 python benchmarks/compensation_cost.py [--configs pixart-alpha-512 sdxl-base-1.0]

One layer of each shape is quantized under the default options, with random weights and a random moment, on one thread;
seconds are multiplied by the number of layers of this shape. Layers are independent, so two cores take half. The
factors of a moment are counted for every layer, also where layers share one. Writes results/compensation_cost.json.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from pathlib import Path

import torch

from qua2sedimo.formats.files import write_json
from qua2sedimo.inspection import inspected
from qua2sedimo.options import ROW_BITS
from qua2sedimo.quantizers import METHODS, Moment, dequantize_weight
from qua2sedimo.statistics import Source
from qua2sedimo.system.machine import peak_memory

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "tests" / "denoisers" / "configs"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="*", default=["pixart-alpha-512", "sdxl-base-1.0"])
    parser.add_argument("--most", type=int, default=1000, help="Shapes to measure, those with most weights first.")
    asked = parser.parse_args()
    found = {}
    for name in asked.configs:
        space = inspected(str(CONFIGS / f"{name}.json")).space
        shapes = Counter((shape[0], math.prod(shape[1:])) for shape in space.shapes.values())
        rows, total, weights = [], 0.0, 0
        for (channels, inputs), count in sorted(shapes.items(), key=lambda of: -of[1] * math.prod(of[0]))[: asked.most]:
            factor, quantize = cost(channels, inputs)
            total += count * (factor + quantize)
            weights += count * channels * inputs
            rows.append({
                "channels": channels, "inputs": inputs, "layers": count, "factor_s": round(factor, 2),
                "options_s": round(quantize, 2), "peak_gb": round(peak_memory() / 1e9, 2),
            })  # fmt: skip
            print(name, rows[-1], flush=True)
        found[name] = {
            "shapes": rows,
            "measured_share": weights / space.weights,
            "minutes_one_thread": round(total / 60, 1),
        }
        print(f"{name}: {total / 60:.1f} minutes on one thread for {weights / space.weights:.1%} of the weights")
    write_json(RESULTS / "compensation_cost.json", found)


def cost(channels: int, inputs: int) -> tuple[float, float]:
    """Seconds to (factorise the moment, quantize and decode every width)."""
    chance = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(channels, inputs, generator=chance)).half()
    moment = Moment(tuple(random_moment(size, chance) for size in Source(("layer",), inputs, ()).blocks))
    began = time.process_time()
    assert moment.factors
    factor = time.process_time() - began
    began = time.process_time()
    for value in METHODS["row"].quantize(weight, ROW_BITS, moment):
        moment.errors(weight.float() - dequantize_weight(value).float())
    return factor, time.process_time() - began


def random_moment(size: int, chance: torch.Generator) -> torch.Tensor:
    """A moment whose directions differ in size by a factor of a hundred, as those of real layers do."""
    spread = torch.logspace(0, -2, size)
    rows = torch.randn(2 * size, size, generator=chance) * spread
    rows = rows @ torch.linalg.qr(torch.randn(size, size, generator=chance)).Q
    return rows.T @ rows / len(rows)


if __name__ == "__main__":
    main()
