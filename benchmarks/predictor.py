"""Which predictor ranks configurations it never saw best, from how many records.

    python benchmarks/predictor.py [--models digits-dit …] [--splits 5] [--sizes 0 10 25 50 100 200] [--minutes 30]
    python benchmarks/predictor.py --docs        # only write the table of docs/method.md

Studies are those of benchmarks/compensation.py, with 260 random configurations of 4 images each measured here. For each
split, a fifth of these records is put aside and every predictor is fitted to the first 10, 25, … of the others. It
ranks those put aside, and the configurations near the frontier that benchmarks/gradients.py measured on 16 images.
Fitting that chooses anything does so within the records it is given. One fit of the network gives three rows: what it
predicts, and the sums over layers and over blocks of the scores of what a configuration chose. Predictors "after layers
alone" know each layer measured alone, too.

Rows go to docs/figures/predictor.json as they are computed and are not computed again; the graph network's come last,
``srcc`` and 100 records first, so that a run which is stopped by --minutes has the cheap ones whole.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from compensation import ROOT, opened
from gradients import ROWS as NEAR
from pages import write_table
from qua2sedimo import Configuration, Study, zoo
from qua2sedimo.damage import Observations, fit_damage, fit_gain
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_json
from qua2sedimo.options import Option
from qua2sedimo.predictor import FitSettings, fit_ensemble
from qua2sedimo.predictor.baselines import one_hot, relative_errors, ridge
from qua2sedimo.report.fill.predictor import noise_ceiling
from qua2sedimo.search import Measured, one_at_a_time
from qua2sedimo.sensitivity import block_level, op_scores
from qua2sedimo.study.evidence import evidence, measure_singles
from qua2sedimo.study.stages.fit import alone_data, hop_roots, layers_alone, training_data

ROWS = ROOT / "docs" / "figures" / "predictor.json"
LOSSES = ("srcc", "lambdarank", "hybrid", "mse")
#: (positions of known records, choices to rank) → what orders these, by the name of the row.
Predict = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
TAUGHT_NOTHING = ("average bits", "sum of relative errors", "gradients", "sum weighted by each layer alone")
FROM_NOTHING = ("damage model", "damage model of searches", "damage model of searches, after layers alone")
_RECORDS, _LEAST_FIT = 260, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", type=int, default=[0, 10, 25, 50, 100, 200])
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--only", nargs="*", default=[""], help="Fits whose name contains one of these.")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    parser.add_argument("--docs", action="store_true", help="Only write the table of the page.")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    for model in [] if asked.docs else asked.models:
        compare(measured(asked.work, model), model, asked, until)
    write_docs(kept_rows())


def measured(work: Path, model: str) -> Study:
    """The study of a model with its bank, and random configurations and layers alone measured on 4 images each."""
    folder = work.parent / "predicting" / model
    if not folder.exists():
        known = opened(argparse.Namespace(work=work), model, 0).folder
        shutil.copytree(known, folder, ignore=shutil.ignore_patterns("choices", "search", "records.db*"))
    study = Study(folder)
    study.measure(_RECORDS)
    measure_singles(study.workspace)
    study.workspace.switch.restore()
    return study


@dataclass(frozen=True)
class Task:
    """Random configurations [records, layers] and their objective, and those near the frontier, to be ranked."""

    study: Study
    choices: np.ndarray
    objective: np.ndarray
    near: np.ndarray
    near_objective: np.ndarray

    @classmethod
    def of(cls, study: Study, model: str) -> Task:
        records = study.workspace.records.all("sample")
        rows = [r for n, r in json.loads(NEAR.read_text())[model]["measured"].items() if n.startswith("near")]
        near = [Configuration.from_json(row["configuration"]) for row in rows]
        found = training_data(study.workspace, records)
        quality = np.array([np.mean(row["psnr"]) for row in rows])
        return cls(study, *found, np.stack([study.workspace.space.encode(c) for c in near]), quality)


def compare(study: Study, model: str, asked: argparse.Namespace, until: float) -> None:
    """Fill in the missing rows of one model and print its table."""
    task = Task.of(study, model)
    count = len(task.objective)
    held_out = min(80, max(50, count // 5))
    sizes = [n for n in asked.sizes if n <= count - held_out]
    cheap, dear = baselines(task), networks(task)
    rows = kept_rows()
    done = {(r["model"], r["fit"], r["records"], r["split"]) for r in rows}
    for name, size, split in order(cheap, dear, sizes, asked.splits):
        wanted = any(part in name for part in asked.only) and time.monotonic() < until
        if (model, name, size, split) in done or not wanted:
            continue
        shuffled = np.random.default_rng(split).permutation(count)
        unseen, known = shuffled[:held_out], shuffled[held_out:][:size]
        given = np.concatenate([task.choices[unseen], task.near])
        for predictor, predicted in (cheap | dear)[name](known, given).items():
            about = {"model": model, "fit": name, "predictor": predictor, "records": size, "split": split}
            far, near = np.split(np.asarray(predicted), [held_out])
            rows.append(about | judge(far, task.objective[unseen]) | {"near": rank(near, task.near_objective)})
        write_json(ROWS, rows)
    ceiling = noise_ceiling(study.workspace.records.all("sample"), study.workspace.objective)
    print(f"\n{model}: {count} records, {held_out} never seen; split-half ceiling {ceiling:.3f}")
    print_table([r for r in rows if r["model"] == model])


def kept_rows() -> list[dict[str, Any]]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else []


def order(
    cheap: Mapping[str, Predict], dear: Mapping[str, Predict], sizes: list[int], splits: int
) -> Iterator[tuple[str, int, int]]:
    """Baselines first, then ``srcc`` with and without layers alone, then other losses, these from 100 records only.

    What learns nothing is fitted to nothing, and the network to as many records as its folds need.
    """
    learning = [n for n in sizes if n]
    yield from (
        (n, size, s) for n in cheap for size in ([0] if n in TAUGHT_NOTHING else learning) for s in range(splits)
    )
    yield from ((n, 0, s) for n in cheap if n in FROM_NOTHING and 0 in sizes for s in range(splits))
    enough = sorted((n for n in learning if n >= _LEAST_FIT), key=lambda n: (n != 100, -n))
    first = list(dear)[:2]
    yield from ((name, size, split) for size in enough for split in range(splits) for name in first)
    yield from ((name, 100, s) for name in dear if name not in first for s in range(splits) if 100 in enough)


def judge(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Spearman's correlation, NDCG of the first ten, and what the best of the first ten lacks to the best of all."""
    found = np.argsort(-predicted)[:10]
    gain = 2 ** (3 * (true - true.min()) / (true.max() - true.min())) - 1
    discount = 1 / np.log2(2 + np.arange(10))
    return {
        "rank": rank(predicted, true),
        "ndcg10": round(float((gain[found] * discount).sum() / (np.sort(gain)[::-1][:10] * discount).sum()), 4),
        "regret10": round(float(true.max() - true[found].max()), 3),
    }


def rank(predicted: np.ndarray, true: np.ndarray) -> float:
    return round(float(spearmanr(predicted, true).statistic), 4)


def networks(task: Task) -> dict[str, Predict]:
    alone = alone_data(task.study.workspace, layers_alone(task.study.workspace))
    found = {"network, srcc": network(task, "srcc"), "network, srcc, after layers alone": network(task, "srcc", alone)}
    return found | {f"network, {loss}": network(task, loss) for loss in LOSSES[1:]}


def network(task: Task, loss: str, alone: tuple[np.ndarray, np.ndarray] | None = None) -> Predict:
    """Fits as `qua2sedimo fit` does."""
    name = f"network, {loss}" + (", after layers alone" if alone is not None else "")
    settings, inside = FitSettings(loss=loss), task.study.workspace

    def predict(known: np.ndarray, given: np.ndarray) -> Mapping[str, np.ndarray]:
        ensemble = fit_ensemble(
            inside.encoding, task.choices[known], task.objective[known], settings,
            roots=hop_roots(inside, settings.hops), alone=alone,
        )  # fmt: skip
        scores = op_scores(inside.space, inside.encoding, ensemble).level(inside.space, given)
        found = {
            name: ensemble.predict(inside.encoding, given).mean(axis=0),
            f"{name}: op-level scores": scores.sum(axis=1),
        }
        try:
            blocks = block_level(inside.graph, inside.space, inside.encoding, ensemble, given)
        except Qua2SeDiMoError as error:  # a hop ranks nothing: such a fit scores no block, and has one row less
            print(f"{name}, {len(known)} records: {error}")
            return found
        return {**found, f"{name}: block-level scores": blocks.sum(axis=1)}

    return predict


def baselines(task: Task) -> dict[str, Predict]:
    """Predictors without a graph; each has (positions of known records, choices to rank) → what orders these."""
    from sklearn.ensemble import GradientBoostingRegressor

    inside, choices, objective = task.study.workspace, task.choices, task.objective
    space, bank, features = inside.space, inside.bank, inside.encoding.damage
    known_of = evidence(inside, ["single", "sample"])
    alone, random = ([m for m in known_of.measured if m.kind == kind] for kind in (0, 1))
    by_configuration = {m.configuration: m for m in random}
    costs, of_alone = bank.costs() or {}, one_at_a_time(replace(known_of, measured=alone))

    def errors(of: np.ndarray) -> np.ndarray:
        return relative_errors(space, bank, of)

    def total(values: Mapping[str, Mapping[Option, float]], of: np.ndarray) -> np.ndarray:
        table = [[values[layer][o] for o in space.options[layer]] for layer in space.layers]
        return np.array([sum(row[i] for row, i in zip(table, choice)) for choice in of])

    def boosting(known: np.ndarray, given: np.ndarray) -> np.ndarray:
        model = GradientBoostingRegressor(
            n_estimators=300, max_depth=3, learning_rate=0.05, subsample=0.7, random_state=0
        )
        logs = [np.log(errors(of) + 1e-9) for of in (choices[known], given)]
        return np.asarray(model.fit(logs[0], objective[known]).predict(logs[1]))

    def learned(known: np.ndarray, given: np.ndarray, first: Sequence[Measured]) -> np.ndarray:
        seen = [by_configuration[space.decode(choices[i])] for i in known]
        return replace(known_of, measured=[*first, *seen]).predicted([space.decode(c) for c in given])

    def damage(known: np.ndarray, given: np.ndarray) -> np.ndarray:
        if len(known) == 0:
            nothing = Observations(choices[:0], objective[:0], np.zeros(0, int), np.zeros(0, int))
            return -fit_damage(features, nothing).predict(given)
        return -fit_gain(features, choices[known], objective[known])[0].predict(given)

    found: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "average bits": lambda _, given: np.array([space.average_bits(space.decode(c)) for c in given]),
        "sum of relative errors": lambda _, given: -errors(given).sum(axis=1),
        "gradients": lambda _, given: -total(costs, given),
        "sum weighted by each layer alone": lambda _, given: total(of_alone, given),
        "gradient boosting on ln errors": boosting,
        "ridge on one-hot options": lambda known, given: ridge(
            one_hot(space, choices[known]), objective[known], one_hot(space, given)
        ),
        "damage model": damage,
        "damage model of searches": lambda known, given: learned(known, given, []),
        "damage model of searches, after layers alone": lambda known, given: learned(known, given, alone),
    }
    return {name: _named(name, predict) for name, predict in found.items()}


def _named(name: str, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Predict:
    return lambda known, given: {name: predict(known, given)}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Mean over splits ± its standard error."""
    sizes = sorted({r["records"] for r in rows})
    for measure in ("rank", "near", "ndcg10", "regret10"):
        print(f"\n  {measure:<56}" + "".join(f"{n:>18}" for n in sizes))
        for name in dict.fromkeys(r["predictor"] for r in rows):
            print(f"  {name:<56}" + "".join(f"{_cell(rows, name, n, measure):>18}" for n in sizes))


def _cell(rows: Sequence[Mapping[str, Any]], name: str, size: int, measure: str) -> str:
    values = np.array([r[measure] for r in rows if r["predictor"] == name and r["records"] == size])
    if not len(values):
        return "–"
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.3f} ±{error:.3f}"


def write_docs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the table of docs/method.md: random configurations and, after a dot, those near the frontier."""
    if not rows:
        return
    sizes = sorted({r["records"] for r in rows})
    lines = [
        "| model | predictor | " + " | ".join(f"{n} records" for n in sizes) + " |",
        "|" + "---|" * (len(sizes) + 2),
    ]
    for model in dict.fromkeys(r["model"] for r in rows):
        of = [r for r in rows if r["model"] == model]
        for name in dict.fromkeys(r["predictor"] for r in of):
            cells = []
            for n in sizes:
                near = [r["near"] for r in of if r["predictor"] == name and r["records"] == n]
                cells.append(f"{_cell(of, name, n, 'rank')} · {np.mean(near):.3f}" if near else "–")
            lines.append(f"| {model} | {name} | " + " | ".join(cells) + " |")
    write_table("method.md", "predictor", lines)


if __name__ == "__main__":
    main()
