"""Does rounding gain from moments in which positions count by their gradients?

    python benchmarks/weighted_moments.py [--models digits-dit …] [--bits 2 2.5 3]

Compensated rounding makes the error at a layer's output small under H, the mean of x·xᵀ over positions. Here Linear
layers that see the noisy sample are rounded again, at the options that gradients choose, once under such a mean over
some recorded calls and once under one in which each position counts by the square of its gradient. Both are judged on
64 fresh pictures, not polished. Studies are those of benchmarks/compensation.py. Writes results/weighted_moments.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compensation import Judge, _program, opened
from qua2sedimo import zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.metrics.estimates import mean_estimate
from qua2sedimo.quantizers import METHODS, Moment
from qua2sedimo.search import by_gradients
from qua2sedimo.statistics import sample_name
from qua2sedimo.statistics.calls import frozen

RESULTS = Path(__file__).parent / "results"
_CALLS, _JUDGED = 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--bits", nargs="*", type=float, default=[2.0, 2.5, 3.0])
    parser.add_argument("--work", type=Path, default=RESULTS / "compensation")
    asked = parser.parse_args()
    rows = []
    for model in asked.models:
        study = opened(asked, model, 0)
        inside = study.workspace
        inside.switch.restore()
        sample = sample_name(inside.denoiser)
        seen = [s for s in inside.statistics.sources if s.sees_sample(sample)]
        units = [u for s in seen for u in s.units if isinstance(module(inside, u), nn.Linear)]
        moments = both_moments(inside, units)
        judge = Judge(study, _JUDGED)
        for bits in asked.bits:
            best = _program(study, by_gradients, bits)
            found = []
            for kind in range(2):
                values = inside.bank.values(best)
                for unit in units:
                    option, moment = best[unit], Moment((moments[unit][kind],))
                    values[unit] = METHODS[option.method].quantize(inside.weight(unit), [option.number], moment)[0]
                found.append(judge(values)["values"])
            gain = mean_estimate(np.array(found[1]) - np.array(found[0]))
            rows.append({
                "model": model, "bits": bits, "layers": len(units), "plain": round(float(np.mean(found[0])), 2),
                "weighted": round(float(np.mean(found[1])), 2), "gain": round(gain.value, 2),
                "low": round(gain.low, 2), "high": round(gain.high, 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
            write_json(RESULTS / "weighted_moments.json", rows)


def module(inside: Any, unit: str) -> nn.Module:
    found = inside.denoiser.get_submodule(inside.graph.layers[unit].module)
    assert isinstance(found, nn.Module)
    return found


def both_moments(inside: Any, units: list[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(mean of x·xᵀ, the same with each position weighted by its squared gradient) of every unit."""
    sums: dict[str, list[torch.Tensor]] = {}
    totals: dict[str, float] = {}

    def watch(unit: str) -> Any:
        span = inside.graph.layers[unit].span

        def hook(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            x = args[0].detach()
            x = x if span is None else x[..., span[0] : span[1]]
            x = x.reshape(-1, x.shape[-1])
            output = output if output.requires_grad else output.detach().requires_grad_()

            def arrived(gradient: torch.Tensor) -> None:
                weight = gradient.reshape(len(x), -1).square().sum(dim=1)
                parts = x.T @ x / len(x), x.T @ (x * weight[:, None])
                known = sums.setdefault(unit, [torch.zeros_like(part) for part in parts])
                for total, part in zip(known, parts):
                    total += part
                totals[unit] = totals.get(unit, 0.0) + float(weight.sum())

            output.register_hook(arrived)
            return output

        return hook

    handles = [module(inside, unit).register_forward_hook(watch(unit)) for unit in units]
    calls = inside.statistics.calls.some(_CALLS)
    try:
        with frozen(inside.denoiser), torch.enable_grad():
            for call in calls:
                outputs = call.run(inside.denoiser)
                torch.autograd.backward(outputs, [g.to(o.dtype) for o, g in zip(outputs, call.cotangents)])
    finally:
        for handle in handles:
            handle.remove()
    return {unit: (a / len(calls), b / totals[unit]) for unit, (a, b) in sums.items()}


if __name__ == "__main__":
    main()
