"""Seconds to score every setting of every block of a PixArt-XL, on five folds.

    python benchmarks/scores.py [CONFIG.json] [--channels 32]

The graph is traced from the configuration alone; errors are made up and the folds untrained, which costs the same. The
whole graph under 64 configurations is timed beside it as the reference. Writes benchmarks/results/scores.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from made_up import MadeUp, parser
from qua2sedimo.predictor import Ensemble, HopNetwork
from qua2sedimo.predictor.ensemble import Fold
from qua2sedimo.sensitivity import block_scores

RESULTS = Path(__file__).parent / "results"
FOLDS = 5


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--channels", type=int, default=32, help="width of the embeddings")
    arguments = asked.parse_args()
    config, channels = arguments.config, arguments.channels
    made = MadeUp.of(config, "paper")
    graph, space, encoding = made.graph, made.space, made.encoding
    folds = []
    for seed in range(FOLDS):
        torch.manual_seed(seed)
        network = HopNetwork(encoding.features, encoding.places, channels).eval().requires_grad_(False)
        folds.append(Fold(network, 0.0, 1.0, [0.9] * (len(network.hops) + 1), [], [], [[0]] * (len(network.hops) + 1)))
    _, whole, _ = seconds(
        lambda: folds[0].network(encoding(torch.zeros(64, len(space.layers), dtype=torch.int64)), encoding.edges)
    )
    took, worked, scores = seconds(lambda: block_scores(graph, space, encoding, Ensemble(folds)))
    print(
        f"{config.stem}: {len(graph.nodes)} nodes, {len(scores.blocks)} blocks, {scores.scored:,} settings, "
        f"{FOLDS} folds"
    )
    about = f"{torch.get_num_threads()} threads ({worked:.2f} s of processor time)"
    print(f"  all settings of all blocks  {took:7.2f} s on {about}")
    print(
        f"  the same inside the whole graph would take {whole * scores.scored * FOLDS / 64:,.0f} s of it "
        f"({whole:.2f} s for 64)"
    )
    for note in scores.notes:
        print(f"  {note}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "nodes": len(graph.nodes), "settings": scores.scored, "folds": FOLDS, "channels": channels,
        "seconds": took, "processor_seconds": worked, "whole_graph_64_processor_seconds": whole,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    (RESULTS / "scores.json").write_text(json.dumps(content, indent=1))


def seconds(work: Any) -> tuple[float, float, Any]:
    """(seconds, seconds of processor time, what was made)."""
    began, began_cpu = time.perf_counter(), time.process_time()
    made = work()
    return time.perf_counter() - began, time.process_time() - began_cpu, made


if __name__ == "__main__":
    main()
