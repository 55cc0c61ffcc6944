"""Why blocks rank worse than layers: what the embedding of a block says beyond the sum over its layers.

    python benchmarks/block_scale.py [--models digits-dit …] [--splits 5] [--docs]

The norm of a block's root is split into what every option does to it by itself, and what is left, which is what options
do together. In place of the former stand op-level scores; the latter is brought to the same spread, and counts with a
factor. With 0 these are op-level scores; if the graph knew what layers do together, some factor above 0 would rank
better. "All norms to one spread" only brings the norm of each root to the spread of its layers' op-level scores.
Studies and records are those of benchmarks/predictor.py, 100 records a fit. Writes docs/figures/block_scale.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from compensation import ROOT
from pages import write_table
from predictor import Task, measured, rank
from qua2sedimo import zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.predictor import Ensemble, FitSettings, fit_ensemble
from qua2sedimo.predictor.network import norms
from qua2sedimo.sensitivity import block_level, op_scores
from qua2sedimo.study.stages.fit import hop_roots

blocks = importlib.import_module("qua2sedimo.sensitivity.block_scores")  # the package has a function of this name
ROWS = ROOT / "docs" / "figures" / "block_scale.json"
_FACTORS, _KNOWN, _UNSEEN, _SAMPLE = (0.3, 1.0), 100, 52, 2_048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    parser.add_argument("--docs", action="store_true", help="Only write the table of the page.")
    asked = parser.parse_args()
    kept: dict[str, dict[str, list[tuple[float, float]]]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for model in [] if asked.docs else asked.models:
        task, found = Task.of(measured(asked.work, model), model), dict[str, list[tuple[float, float]]]()
        for split in range(asked.splits):
            order = np.random.default_rng(split).permutation(len(task.objective))
            unseen, known = order[:_UNSEEN], order[_UNSEEN:][:_KNOWN]
            given = np.concatenate([task.choices[unseen], task.near])
            for name, values in ways(task, fitted(task, known), given):
                far, near = np.split(values, [_UNSEEN])
                pair = rank(far, task.objective[unseen]), rank(near, task.near_objective)
                found.setdefault(name, []).append(pair)
                print(model, split, name, *pair, flush=True)
        kept[model] = found
        write_json(ROWS, kept)
    lines = ["| scores | " + " | ".join(kept) + " |", "|" + "---|" * (len(kept) + 1)]
    for name in next(iter(kept.values()), {}):
        cells = [" · ".join(f"{v:.3f}" for v in np.mean(kept[model][name], axis=0)) for model in kept]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if kept:
        write_table("sensitivity.md", "blocks", lines)


def fitted(task: Task, known: np.ndarray) -> Ensemble:
    inside, settings = task.study.workspace, FitSettings()
    choices, objective = task.choices[known], task.objective[known]
    return fit_ensemble(inside.encoding, choices, objective, settings, roots=hop_roots(inside, settings.hops))


@torch.no_grad()
def ways(task: Task, ensemble: Ensemble, given: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Scores of whole configurations ``given`` [configurations, layers], summed over folds, in several ways."""
    inside = task.study.workspace
    encoding, embedded = inside.encoding, [blocks.Embedded.of(inside.encoding, f.network) for f in ensemble.folds]
    own = op_scores(inside.space, encoding, ensemble).level(inside.space, given).sum(axis=1)
    yield "by layers (op level)", own
    by_blocks = block_level(inside.graph, inside.space, encoding, ensemble, given)
    yield "by blocks, standardised by hop", by_blocks.sum(axis=1)
    deviations = [float(norms(e.options[encoding.offered]).std()) for e in embedded]
    units = [fold.hop_weights[0] / deviation for fold, deviation in zip(ensemble.folds, deviations)]
    total, together = np.zeros(len(given)), np.zeros(len(given))
    for field in blocks._fields(inside.graph, inside.space, ensemble):
        settings, value = blocks._few(embedded, field, _SAMPLE)
        chosen = given[:, field.layers]
        norm = blocks._norms(embedded, field, chosen)
        layers = torch.as_tensor(field.layers)
        for k, unit in enumerate(units):
            table = norms(embedded[k].options[layers]).double().numpy()  # [layers, options]
            rows = np.arange(len(table))
            effects, mean = alone(settings, value[:, k], table.shape[1])
            spread = unit * table[rows, settings].sum(axis=1).std()
            total += spread * (norm[:, k] - mean) / max(value[:, k].std(), 1e-9)
            left = norm[:, k] - mean - effects[rows, chosen].sum(axis=1)
            together += spread * left / max(effects[rows, settings].sum(axis=1).std(), 1e-9)
    yield "by blocks, all norms to one spread", total
    for factor in _FACTORS:
        yield f"by layers, and {factor:g} × what their options do together", own + factor * together


def alone(settings: np.ndarray, value: np.ndarray, options: int) -> tuple[np.ndarray, float]:
    """(what each option adds by itself [layers, options], the mean), by least squares over settings [settings, layers]
    with these values [settings]."""
    layers, mean = settings.shape[1], float(value.mean())
    design = np.zeros((len(settings), layers * options))
    for i in range(layers):
        design[np.arange(len(settings)), i * options + settings[:, i]] = 1.0
    found = np.linalg.pinv(design.T @ design, hermitian=True) @ (design.T @ (value - mean))
    return found.reshape(layers, options), mean


if __name__ == "__main__":
    main()
