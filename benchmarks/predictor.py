"""Which predictor ranks configurations it never saw best, from how many records.

    python benchmarks/predictor.py STUDY [...] [--splits 5] [--sizes 25,50,100,200] [--minutes 30]

For each split, a fifth of the records, 50 at least and 80 at most, is put aside and every predictor is fitted to the
first 25, 50, 100, 200 of the others. Fitting that chooses anything does so within those. One fit of the network gives
three rows: what it predicts, and the sums over layers and over blocks of the scores of what a configuration chose.
Predictors "after layers alone" know the study's layers measured alone too (records of role ``single``).

Rows go to benchmarks/results/predictor.json as they are computed and are not computed again; the graph network's come
last, ``srcc`` and 100 records first, so that a run which is stopped by --minutes has the cheap ones whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from qua2sedimo import Study
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json, write_json
from qua2sedimo.predictor import FitSettings, fit_ensemble
from qua2sedimo.predictor.baselines import additive, one_hot, relative_errors, ridge
from qua2sedimo.report.fill.predictor import noise_ceiling
from qua2sedimo.search import Evidence, one_at_a_time
from qua2sedimo.sensitivity import block_level, op_scores
from qua2sedimo.study.evidence import evidence
from qua2sedimo.study.stages.fit import alone_data, hop_roots, layers_alone, training_data

RESULTS = Path(__file__).parent / "results"
LOSSES = ("srcc", "lambdarank", "hybrid", "mse")
#: (known, unseen) record positions → what orders the unseen, by the name of the row.
Predict = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--sizes", default="25,50,100,200")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--only", nargs="*", default=[""], help="fits whose name contains one of these")
    parser.add_argument("--result", type=Path, default=RESULTS / "predictor.json")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    for folder in asked.studies:
        compare(folder, asked.splits, [int(n) for n in asked.sizes.split(",")], asked.only, asked.result, until)


def compare(folder: Path, splits: int, sizes: list[int], only: list[str], path: Path, until: float) -> None:
    """Fill in the missing rows of one study and print its table."""
    study = Study(folder)
    records = study.workspace.records.all("sample")
    choices, objective = training_data(study.workspace, records)
    held_out = min(80, max(50, len(records) // 5))
    sizes = [n for n in sizes if n <= len(records) - held_out]
    cheap, dear = baselines(study, choices, objective), networks(study, choices, objective)
    rows: list[dict[str, Any]] = read_json(path) if path.exists() else []
    done = {(r["study"], r["fit"], r["records"], r["split"]) for r in rows}
    for name, size, split in order(cheap, dear, sizes, splits):
        wanted = any(part in name for part in only) and time.monotonic() < until
        if (folder.name, name, size, split) in done or not wanted:
            continue
        shuffled = np.random.default_rng(split).permutation(len(records))
        unseen, known = shuffled[:held_out], shuffled[held_out:][:size]
        for predictor, predicted in (cheap | dear)[name](known, unseen).items():
            about = {"study": folder.name, "fit": name, "predictor": predictor, "records": size, "split": split}
            rows.append(about | judge(predicted, objective[unseen]))
        path.parent.mkdir(exist_ok=True)
        write_json(path, rows)
    images = len(next(iter(records[0].measurement.values.values())))
    print(
        f"\n{folder.name}: {len(records)} records of {images} images, {held_out} never seen; "
        f"split-half ceiling {noise_ceiling(records, study.workspace.objective):.3f}"
    )
    print_table([r for r in rows if r["study"] == folder.name])


def order(
    cheap: Mapping[str, Predict], dear: Mapping[str, Predict], sizes: list[int], splits: int
) -> Iterator[tuple[str, int, int]]:
    """Baselines first, then ``srcc`` with and without layers alone, then other losses; 100 records before others."""
    yield from ((name, size, split) for name in cheap for size in sizes for split in range(splits))
    preferred = sorted(sizes, key=lambda n: (n != 100, -n))
    first = list(dear)[:2]
    for names in (first, [name for name in dear if name not in first]):
        yield from ((name, size, split) for size in preferred for split in range(splits) for name in names)


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


def networks(study: Study, choices: np.ndarray, objective: np.ndarray) -> dict[str, Predict]:
    alone = alone_data(study.workspace, layers_alone(study.workspace))
    found = {"network, srcc": network(study, choices, objective, "srcc")}
    if alone is not None:
        found["network, srcc, after layers alone"] = network(study, choices, objective, "srcc", alone)
    return found | {f"network, {loss}": network(study, choices, objective, loss) for loss in LOSSES[1:]}


def network(
    study: Study, choices: np.ndarray, objective: np.ndarray, loss: str,
    alone: tuple[np.ndarray, np.ndarray] | None = None,
) -> Predict:  # fmt: skip
    """Fits as `qua2sedimo fit` does."""
    name = f"network, {loss}" + (", after layers alone" if alone is not None else "")
    settings = FitSettings(loss=loss)

    def predict(known: np.ndarray, unseen: np.ndarray) -> Mapping[str, np.ndarray]:
        ensemble = fit_ensemble(
            study.workspace.encoding, choices[known], objective[known], settings,
            roots=hop_roots(study.workspace, settings.hops), alone=alone,
        )  # fmt: skip
        scores = op_scores(study.workspace.space, study.workspace.encoding, ensemble).level(
            study.workspace.space, choices[unseen]
        )
        found = {
            name: ensemble.predict(study.workspace.encoding, choices[unseen]).mean(axis=0),
            f"{name}: op-level scores": scores.sum(axis=1),
        }
        try:
            blocks = block_level(
                study.workspace.graph, study.workspace.space, study.workspace.encoding, ensemble, choices[unseen]
            )
        except Qua2SeDiMoError as error:  # a hop ranks nothing: such a fit scores no block, and has one row less
            print(f"{name}, {len(known)} records: {error}")
            return found
        return {**found, f"{name}: block-level scores": blocks.sum(axis=1)}

    return predict


def baselines(study: Study, choices: np.ndarray, objective: np.ndarray) -> dict[str, Predict]:
    """Predictors without a graph."""
    from sklearn.ensemble import GradientBoostingRegressor

    errors = relative_errors(study.workspace.space, study.workspace.bank, choices)
    hot = one_hot(study.workspace.space, choices)
    bits = np.array([study.workspace.space.average_bits(study.workspace.space.decode(choice)) for choice in choices])

    def boosting(known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        model = GradientBoostingRegressor(
            n_estimators=300, max_depth=3, learning_rate=0.05, subsample=0.7, random_state=0
        )
        return np.asarray(
            model.fit(np.log(errors[known] + 1e-9), objective[known]).predict(np.log(errors[unseen] + 1e-9))
        )

    found: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "average bits": lambda known, unseen: bits[unseen],
        "sum of relative errors": lambda known, unseen: -errors[unseen].sum(axis=1),
        "gradient boosting on ln errors": boosting,
        "ridge on one-hot options": lambda known, unseen: ridge(hot[known], objective[known], hot[unseen]),
        "additive model": lambda known, unseen: additive(
            study.workspace.encoding.damage, choices[known], objective[known], choices[unseen]
        ),
    }
    if layers_alone(study.workspace):
        found |= after_layers_alone(evidence(study.workspace, ["single", "sample"]))
    return {name: _named(name, predict) for name, predict in found.items()}


def after_layers_alone(known_of: Evidence) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Predictors that know the layers measured alone, and the search's additive model without them.

    ``known_of`` holds layers alone and random records, these in the order of their positions.
    """
    alone, random = ([m for m in known_of.measured if m.kind == kind] for kind in (0, 1))
    values = one_at_a_time(known_of)

    def weighted(known: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        return np.array([sum(values[n][o] for n, o in random[i].configuration.items()) for i in unseen])

    def model(known: np.ndarray, unseen: np.ndarray, first: list[Any]) -> np.ndarray:
        learned = replace(known_of, measured=first + [random[i] for i in known])
        return learned.predicted([random[i].configuration for i in unseen])

    return {
        "sum weighted by each layer alone": weighted,
        "search's additive model": lambda known, unseen: model(known, unseen, []),
        "search's additive model, after layers alone": lambda known, unseen: model(known, unseen, alone),
    }


def _named(name: str, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Predict:
    return lambda known, unseen: {name: predict(known, unseen)}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean over splits ± its standard error."""
    sizes = sorted({r["records"] for r in rows})
    for measure in ("rank_correlation", "ndcg10", "regret10"):
        print(f"\n  {measure:<56}" + "".join(f"{n:>18}" for n in sizes))
        for name in dict.fromkeys(r["predictor"] for r in rows):
            cells = []
            for n in sizes:
                values = np.array([r[measure] for r in rows if r["predictor"] == name and r["records"] == n])
                error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
                cells.append(f"{values.mean():.3f} ±{error:.3f} ({len(values)})" if len(values) else "–")
            print(f"  {name:<56}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
