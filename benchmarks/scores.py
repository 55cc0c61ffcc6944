"""Seconds to score every setting of every block of a PixArt-XL, on five folds.

    python benchmarks/scores.py [CONFIG.json] [CHANNELS]

The graph is traced from the configuration alone; errors are made up and the folds untrained, which costs the same. The
whole graph under 64 configurations is timed beside it as the reference. Writes benchmarks/results/scores.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from qua2sedimo.denoisers import architecture, built_inputs, trace
from qua2sedimo.options import SearchSpace
from qua2sedimo.predictor import Encoding, Ensemble, HopNetwork
from qua2sedimo.predictor.ensemble import Fold
from qua2sedimo.sensitivity import block_scores

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parent.parent / "tests" / "denoisers" / "configs" / "pixart-alpha-512.json"
FOLDS = 5


def main() -> None:
    config = Path(sys.argv[1]) if len(sys.argv) > 1 else CONFIG
    channels = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    model = architecture(config)
    graph = trace(model, (), built_inputs(model), parts=True)
    space = SearchSpace.of({name: layer.shape for name, layer in graph.layers.items()}, "paper")
    chance = np.random.default_rng(0)
    errors = {
        n: {o: SimpleNamespace(relative_mse=4.0**-o.bits * chance.uniform(0.5, 2)) for o in space.options[n]}
        for n in space.layers
    }
    bank: Any = SimpleNamespace(errors=errors)
    encoding = Encoding(graph, space, bank)
    folds = []
    for seed in range(FOLDS):
        torch.manual_seed(seed)
        network = HopNetwork(encoding.features, encoding.places, channels).eval().requires_grad_(False)
        folds.append(Fold(network, 0.0, 1.0, [0.9] * (len(network.hops) + 1), [], [], [[0]] * (len(network.hops) + 1)))
    whole, _ = seconds(
        lambda: folds[0].network(encoding(torch.zeros(64, len(space.layers), dtype=torch.int64)), encoding.edges)
    )
    took, scores = seconds(lambda: block_scores(graph, space, encoding, Ensemble(folds)))
    print(
        f"{config.stem}: {len(graph.nodes)} nodes, {len(scores.blocks)} blocks, {scores.scored:,} settings, "
        f"{FOLDS} folds"
    )
    print(f"  all settings of all blocks  {took:7.2f} s on {torch.get_num_threads()} threads")
    print(
        f"  the same inside the whole graph would take {whole * scores.scored * FOLDS / 64:,.0f} s "
        f"({whole:.2f} s for 64)"
    )
    for note in scores.notes:
        print(f"  {note}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "nodes": len(graph.nodes), "settings": scores.scored, "folds": FOLDS, "channels": channels,
        "seconds": took, "whole_graph_64_seconds": whole, "threads": torch.get_num_threads(),
    }  # fmt: skip
    (RESULTS / "scores.json").write_text(json.dumps(content, indent=1))


def seconds(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


if __name__ == "__main__":
    main()
