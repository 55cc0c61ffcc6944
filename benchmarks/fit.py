"""Seconds to fit the predictor's five folds to 500 records of a PixArt-XL.

    python benchmarks/fit.py [CONFIG.json] [--records 500]
    python benchmarks/fit.py --few        # how the damage model ranks after 25 and 200 records

The graph is traced from the configuration alone. Errors and objective are made up: an additive damage with
sensitivities drawn for every layer, and an interaction of neighbours on top: hard to rank for any predictor, hence
the simple ones beside it. Encoding all records once is timed beside it as the reference, and processor time is told,
since seconds depend on what else the machine does.
Writes benchmarks/results/fit.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from made_up import MadeUp, parser
from qua2sedimo.damage import fit_gain
from qua2sedimo.predictor import FitSettings, fit_ensemble
from qua2sedimo.predictor.baselines import one_hot, out_of_fold, relative_errors, ridge

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--records", type=int, default=500)
    asked.add_argument("--few", action="store_true", help="Only the damage model, from few records.")
    arguments = asked.parse_args()
    config, records = arguments.config, arguments.records
    made = MadeUp.of(config, "wide")
    if arguments.few:
        few(made)
        return
    graph, space, encoding, chance = made.graph, made.space, made.encoding, made.chance
    counts = np.array([len(space.options[n]) for n in space.layers])
    choices = (chance.random((records, len(counts))) * counts).astype(int)
    damage = relative_errors(space, made.bank, choices) * np.exp(chance.normal(0, 1, len(counts)))
    quality = -10 * np.log10(damage.sum(axis=1) + 3 * np.sqrt(damage[:, 1:] * damage[:, :-1]).sum(axis=1))

    began = time.perf_counter()
    for low in range(0, records, 64):
        encoding(torch.as_tensor(choices[low : low + 64]))
    encoded = time.perf_counter() - began
    began, began_cpu = time.perf_counter(), time.process_time()
    epochs: list[int] = []
    ensemble = fit_ensemble(encoding, choices, quality, FitSettings(), lambda fold, epoch: epochs.append(fold))
    took, worked = time.perf_counter() - began, time.process_time() - began_cpu
    positions, predicted = ensemble.out_of_fold()
    rank = float(spearmanr(predicted, quality[positions]).statistic)
    print(f"{config.stem}: {len(graph.nodes)} nodes, {len(space.layers)} layers, {records} records, 5 folds")
    print(
        f"  fit  {took:7.1f} s on {torch.get_num_threads()} threads ({worked:.1f} s of processor time), "
        f"{len(epochs)} epochs and folds; encoding all records once {encoded:.2f} s"
    )
    folds = [list(fold.test) for fold in ensemble.folds]
    others = {
        "ridge on one-hot options": out_of_fold(ridge, one_hot(space, choices), quality, folds),
        "sum of relative errors": -relative_errors(space, made.bank, choices).sum(axis=1),
    }
    rivals = {name: float(spearmanr(found, quality).statistic) for name, found in others.items()}
    beside = ", ".join(f"{name} {value:.3f}" for name, value in rivals.items())
    print(f"  rank correlation on records no fold saw {rank:.3f}; {beside}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "nodes": len(graph.nodes), "records": records, "seconds": took, "processor_seconds": worked,
        "encoding_seconds": encoded, "epochs": len(epochs), "threads": torch.get_num_threads(),
        "rank_correlation": rank, "rank_correlation_of_others": rivals,
    }  # fmt: skip
    (RESULTS / "fit.json").write_text(json.dumps(content, indent=1))


def few(made: MadeUp, seeds: int = 3, unseen: int = 150) -> None:
    """Rank correlation on unseen configurations, of the sum of errors and of the damage model after some records, for
    layers that differ by e^(deviation·z) and neighbours that interact or do not."""
    space, known = made.space, (25, 200)
    counts = np.array([len(space.options[n]) for n in space.layers])
    for deviation, interacting in ((0.0, 3.0), (1.0, 3.0), (1.0, 0.0), (2.0, 3.0)):
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            chance = np.random.default_rng(seed)
            choices = (chance.random((max(known) + unseen, len(counts))) * counts).astype(int)
            errors = relative_errors(space, made.bank, choices)
            damage = errors * np.exp(chance.normal(0, deviation, len(counts)))
            neighbours = np.sqrt(damage[:, 1:] * damage[:, :-1]).sum(axis=1)
            quality = -10 * np.log10(damage.sum(axis=1) + interacting * neighbours)
            by = {"sum of errors": -errors[-unseen:].sum(axis=1)}
            for records in known:
                model, _ = fit_gain(made.encoding.damage, choices[:records], quality[:records])
                by[f"{records} records"] = -model.predict(choices[-unseen:])
            for name, values in by.items():
                found.setdefault(name, []).append(float(spearmanr(values, quality[-unseen:]).statistic))
        said = ", ".join(f"{n} {np.mean(v):.3f} ± {np.std(v, ddof=1) / seeds**0.5:.3f}" for n, v in found.items())
        print(f"deviation {deviation:g}, {'' if interacting else 'no '}interaction: {said}", flush=True)


if __name__ == "__main__":
    main()
