"""Which predictor ranks configurations it never saw best, from how many records.

    python benchmarks/predictor.py STUDY [...] [--splits 5] [--sizes 25,50,100,200] [--minutes 30]

For each split, 80 records are put aside (a third, if there are fewer than 240) and every predictor is fitted to the
first 25, 50, 100, 200 of the others. Fitting that chooses anything does so within those. If it is there,
STUDY/singles.json holds one-layer-at-a-time measurements: {"LAYER|OPTION": {"psnr": [one value an image]}}.

Rows go to benchmarks/results/predictor.json as they are computed and are not computed again; the graph network's come
last, ``srcc`` first, so that a run which is stopped by --minutes has the cheap ones whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from qua2sedimo import Study
from qua2sedimo.files import read_json, write_json
from qua2sedimo.options import Option
from qua2sedimo.predictor import Encoding, FitSettings, fit_additive, fit_ensemble, relative_errors
from qua2sedimo.predictor.baselines import one_hot, ridge
from qua2sedimo.report.assemble import noise_ceiling

RESULTS = Path(__file__).parent / "results"
LOSSES = ("srcc", "lambdarank", "hybrid", "mse")
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--sizes", default="25,50,100,200")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--result", type=Path, default=RESULTS / "predictor.json")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    for folder in asked.studies:
        compare(folder, asked.splits, [int(n) for n in asked.sizes.split(",")], asked.result, until)


def compare(folder: Path, splits: int, sizes: list[int], path: Path, until: float) -> None:
    """Fill in the missing rows of one study and print its table."""
    study = Study(folder)
    records = study.records.all("sample")
    choices, objective = study.training_data(records)
    held_out = 80 if len(records) >= 240 else len(records) // 3
    sizes = [n for n in sizes if n <= len(records) - held_out]
    predictors = baselines(study, choices, objective)
    networks = {f"graph network, {loss}": network(study.encoding, choices, objective, loss) for loss in LOSSES}
    rows: list[dict[str, Any]] = read_json(path) if path.exists() else []
    done = {(r["study"], r["predictor"], r["records"], r["split"]) for r in rows}
    for name, size, split in order(predictors, networks, sizes, splits):
        if (folder.name, name, size, split) in done or time.monotonic() > until:
            continue
        shuffled = np.random.default_rng(split).permutation(len(records))
        unseen, known = shuffled[:held_out], shuffled[held_out:][:size]
        predicted = (predictors | networks)[name](known, unseen)
        quality = judge(predicted, objective[unseen])
        rows.append({"study": folder.name, "predictor": name, "records": size, "split": split, **quality})
        RESULTS.mkdir(exist_ok=True)
        write_json(path, rows)
    ceiling = noise_ceiling(records, study.settings.objective)
    print(f"\n{folder.name}: {len(records)} records, {held_out} never seen, split-half ceiling {ceiling}")
    print_table([r for r in rows if r["study"] == folder.name])


def order(
    cheap: dict[str, Predict], networks: dict[str, Predict], sizes: list[int], splits: int
) -> Iterator[tuple[str, int, int]]:
    yield from ((name, size, split) for name in cheap for size in sizes for split in range(splits))
    preferred = sorted(sizes, key=lambda n: (n != 100, -n))
    first, *others = networks
    yield from ((first, size, split) for size in preferred for split in range(splits))
    yield from ((name, size, split) for size in preferred for split in range(splits) for name in others)


def judge(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Spearman's correlation, NDCG of the first ten, and what the best of the first ten lacks to the best of all."""
    found = np.argsort(-predicted)[:10]
    gain = 2 ** (3 * (true - true.min()) / (true.max() - true.min())) - 1
    discount = 1 / np.log2(2 + np.arange(10))
    return {
        "rank_correlation": float(spearmanr(predicted, true).statistic),
        "ndcg10": float((gain[found] * discount).sum() / (np.sort(gain)[::-1][:10] * discount).sum()),
        "regret10": float(true.max() - true[found].max()),
    }


def network(encoding: Encoding, choices: np.ndarray, objective: np.ndarray, loss: str) -> Predict:
    def predict(known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        ensemble = fit_ensemble(encoding, choices[known], objective[known], FitSettings(loss=loss))
        return ensemble.predict(encoding, choices[unseen]).mean(axis=0)

    return predict


def baselines(study: Study, choices: np.ndarray, objective: np.ndarray) -> dict[str, Predict]:
    """Predictors without a graph: (known, unseen) record positions → predicted objective of the unseen."""
    from sklearn.ensemble import GradientBoostingRegressor

    errors = relative_errors(study.space, study.bank, choices)
    hot = one_hot(study.space, choices)
    bits = np.array([study.space.average_bits(study.space.decode(choice)) for choice in choices])

    def boosting(known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        model = GradientBoostingRegressor(
            n_estimators=300, max_depth=3, learning_rate=0.05, subsample=0.7, random_state=0
        )
        return np.asarray(
            model.fit(np.log(errors[known] + 1e-9), objective[known]).predict(np.log(errors[unseen] + 1e-9))
        )

    def additive(known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        return fit_additive(study.graph, study.space, errors[known], objective[known]).quality(errors[unseen])

    found: dict[str, Predict] = {
        "average bits": lambda known, unseen: bits[unseen],
        "sum of relative errors": lambda known, unseen: -errors[unseen].sum(axis=1),
        "gradient boosting on ln errors": boosting,
        "ridge on one-hot options": lambda known, unseen: ridge(hot[known], objective[known], hot[unseen]),
        "additive model": additive,
    }
    weights = one_at_a_time(study)
    if weights is not None:
        found["sum weighted by each layer alone"] = lambda known, unseen: -(errors[unseen] @ weights)
    return found


def one_at_a_time(study: Study) -> np.ndarray | None:
    """Image error a unit of relative weight error, layer by layer: the geometric mean over the measured options."""
    path = study.folder / "singles.json"
    if not path.exists():
        return None
    found: dict[str, list[float]] = {}
    for key, values in read_json(path).items():
        layer, option = key.split("|")
        error = study.bank.errors[layer][Option.parse(option)].relative_mse
        found.setdefault(layer, []).append(-float(np.mean(values["psnr"])) * np.log(10) / 10 - np.log(error + 1e-9))
    if set(found) != set(study.space.layers):
        return None
    return np.exp([np.mean(found[layer]) for layer in study.space.layers])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean over splits ± its standard error."""
    sizes = sorted({r["records"] for r in rows})
    for measure in ("rank_correlation", "ndcg10", "regret10"):
        print(f"\n  {measure:<34}" + "".join(f"{n:>18}" for n in sizes))
        for name in dict.fromkeys(r["predictor"] for r in rows):
            cells = []
            for n in sizes:
                values = np.array([r[measure] for r in rows if r["predictor"] == name and r["records"] == n])
                error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
                cells.append(f"{values.mean():.3f} ±{error:.3f} ({len(values)})" if len(values) else "–")
            print(f"  {name:<34}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
