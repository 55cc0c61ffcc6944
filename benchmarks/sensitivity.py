"""Do explanations agree with measuring? Layers ranked by the predictor, against each layer quantized alone.

    python benchmarks/sensitivity.py [--epochs 40] STUDY [STUDY ...]

Needs a study with measured configurations (`qua2sedimo measure`) and with layers measured alone, all others at full
precision (records of role ``single``; `qua2sedimo search` and `frontier` make them). The predictor is fitted to the
random configurations only, so that what it is compared with was not told it; nothing of the study is changed. Writes
benchmarks/results/sensitivity.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from qua2sedimo import Study
from qua2sedimo.options import Option
from qua2sedimo.predictor import FitSettings, fit_ensemble
from qua2sedimo.sensitivity import Sensitivity, op_scores, option_effects
from qua2sedimo.study.stages.fit import hop_roots, training_data

RESULTS = Path(__file__).parent / "results"
REPLICATES = 1000


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    asked.add_argument("--epochs", type=int, default=FitSettings().epochs, help="of the predictor")
    arguments = asked.parse_args()
    rows = []
    for folder in arguments.studies:
        study = Study(folder)
        found, measured = explained(study, FitSettings(epochs=arguments.epochs)), singles(study)
        print(
            f"\n{folder.name}: {len(found.space.layers)} layers, {len(study.workspace.records.all('sample'))} records"
        )
        for option in sorted({option for _, option in measured}):
            rows += [{"study": folder.name, **row} for row in compared(found, measured, option)]
            for row in rows[-4:]:
                low, high = row["interval"]
                print(f"  {row['option']:<11} {row['ranking']:<38} {row['rank']:6.3f} [{low:.3f}, {high:.3f}]")
            print(
                f"  {option!s:<11} {'halves of the images with each other':<38} {rows[-1]['halves']:6.3f}", flush=True
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sensitivity.json").write_text(json.dumps(rows, indent=1))


def explained(study: Study, settings: FitSettings) -> Sensitivity:
    """What `qua2sedimo explain` finds, of a predictor that knows no layer measured alone."""
    space, encoding, graph = study.workspace.space, study.workspace.encoding, study.workspace.graph
    known = training_data(study.workspace, study.workspace.records.all("sample"))
    ensemble = fit_ensemble(encoding, *known, settings, roots=hop_roots(study.workspace, settings.hops))
    effects = option_effects(space, encoding, ensemble, *known)
    scores = op_scores(space, encoding, ensemble)
    return Sensitivity(graph.layers, space, study.workspace.bank, scores, effects, study.workspace.objective.unit)


def singles(study: Study) -> dict[tuple[str, Option], np.ndarray]:
    """Loss of quality of each image, for a layer at an option alone: (layer, option) → [images]."""
    metric, sign = study.workspace.objective.metrics[0], -study.workspace.objective.sign
    return {
        next(iter(r.configuration.items())): sign * np.array(r.measurement.values[metric])
        for r in study.workspace.records.all("single")
    }


def compared(found: Sensitivity, measured: Mapping[tuple[str, Option], np.ndarray], option: Option) -> list[dict]:
    """Rank correlation over layers of each way to rank them with the measured loss at ``option`` alone."""
    layers = [name for name in found.space.layers if (name, option) in measured]
    images = np.array([measured[name, option] for name in layers])
    by_row = {(r.layer, r.option): r for r in found.rows}
    steps = {s.layer.name: s.step.cost for s in found.steps}
    best = {name: max(s.score for s in found.scores.layers[name].values()) for name in layers}
    rankings = {
        "score lost by this option": [best[name] - by_row[name, str(option)].score for name in layers],
        "cost of this option": [by_row[name, str(option)].cost for name in layers],
        "cost of 4 → 3 bits": [steps.get(name, 0.0) for name in layers],
        "relative error (no measurements)": [by_row[name, str(option)].relative_mse for name in layers],
    }
    chance = np.random.default_rng(0)
    draws = [chance.integers(len(layers), size=len(layers)) for _ in range(REPLICATES)]
    truth = images.mean(axis=1)
    halves = float(spearmanr(images[:, ::2].mean(axis=1), images[:, 1::2].mean(axis=1)).statistic)
    rows = []
    for name, values in rankings.items():
        value = np.array(values)
        replicates = [spearmanr(value[d], truth[d]).statistic for d in draws]
        low, high = (float(q) for q in np.nanquantile(replicates, [0.025, 0.975]))
        rank = float(spearmanr(value, truth).statistic)
        rows.append({
            "option": str(option), "ranking": name, "rank": rank, "interval": [low, high], "layers": len(layers),
            "halves": halves,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
