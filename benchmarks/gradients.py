"""What gradients know of damage before anything is measured, and what measurements add.

    python benchmarks/gradients.py [--models digits-dit …] [--count 60] [--images 16] [--alone 64] [--work FOLDER]
    python benchmarks/gradients.py --docs        # only write the tables of docs/sensitivity.md and docs/sampling.md

Measured are, on images that models may learn from: random configurations of the study's sampler; configurations near
the frontier, that is the best by expected damage for 2 to 4 bits after a random factor for each layer; and each layer
alone at its smallest option. Ranked are they by the sum of relative errors; by squared gradients, as if errors at
different positions were independent; by what options change in the output; by the same with what layers do together,
with early, middle or late steps alone, and where each layer is changed by itself instead, without gradients; and by the
damage model, which joins changes with the relative error, before and after it has seen random configurations, or some
near the frontier. Studies are those of benchmarks/compensation.py, measurements are kept in
docs/figures/gradients.json: stopped, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from compensation import ROOT, opened
from pages import write_table
from qua2sedimo import Study, zoo
from qua2sedimo.damage import DECIBEL, Observations, fit_damage
from qua2sedimo.formats.files import write_json
from qua2sedimo.images.ledger import LEARNING
from qua2sedimo.metrics.distances import psnr
from qua2sedimo.options import Configuration, Option
from qua2sedimo.search import best_configurations, by_gradients
from qua2sedimo.sensitivity import THIRDS
from qua2sedimo.statistics import OutputDifference
from qua2sedimo.study.evidence import smallest_option

ROWS = ROOT / "docs" / "figures" / "gradients.json"
KINDS = ("random", "near", "alone")
#: Factors e^(σ·z) by which expected damage is changed, for configurations near the frontier in turn.
_SPREADS = (0.3, 0.7, 1.2)
_SEEN, _SPLITS = (0, 10, 25, 40), 10

Rows = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--count", type=int, default=60, help="Random configurations, and as many near the frontier.")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--alone", type=int, default=64, help="Images of each layer alone: they differ little.")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    parser.add_argument("--docs", action="store_true", help="Only write the table of the page.")
    asked = parser.parse_args()
    kept: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for model in [] if asked.docs else asked.models:
        study = opened(asked, model, 0)
        rows: Rows = kept.setdefault(model, {}).setdefault("measured", {})
        for name, row in measured(study, wanted(study, asked.count), rows, asked):
            rows[name] = row
            write_json(ROWS, kept)
        if "one by one" not in kept[model]:
            kept[model]["one by one"] = one_by_one(study)
            write_json(ROWS, kept)
        kept[model]["found"] = found = ranked(study, rows, kept[model]["one by one"])
        kept[model]["taught"] = taught(study, rows)
        write_json(ROWS, kept)
        print(model, json.dumps(found, indent=1))
    write_docs(kept)


def wanted(study: Study, count: int) -> Iterator[tuple[str, Configuration]]:
    """Configurations by name."""
    inside = study.workspace
    space, scores, rng = inside.space, by_gradients(inside.unmeasured), np.random.default_rng(0)
    for i in range(count):
        yield f"random {i}", inside.sampler(i)
    for i in range(count):
        bits, spread = 2 + 2 * rng.random(), _SPREADS[i % len(_SPREADS)]
        factors = {n: float(np.exp(spread * rng.normal())) for n in space.layers}
        changed = {n: {o: factors[n] * scores[n][o] for o in space.options[n]} for n in space.layers}
        yield f"near {i}", next(best_configurations(space, changed, int(bits * space.weights / 8)))
    for layer in space.layers:
        yield f"alone {layer}", Configuration({layer: smallest_option(inside, layer)})


def measured(
    study: Study, configurations: Iterator[tuple[str, Configuration]], there: Mapping[str, Any],
    asked: argparse.Namespace,
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """PSNR of each image, of the configurations that lack some, or were others: where two options of a layer are about
    equal, another machine may keep the other one."""
    inside, which = study.workspace, LEARNING.images(max(asked.images, asked.alone), skip=400)
    inside.switch.restore()
    full = inside.generator(which.start, which.stop)
    for name, configuration in configurations:
        same = name in there and there[name]["configuration"] == configuration.to_json()
        known = list(there[name]["psnr"]) if same else []
        images = range(len(known), asked.alone if name.startswith("alone") else asked.images)
        if images:
            inside.switch.apply(configuration)
            made = inside.generator(which.start + images.start, which.start + images.stop)
            values = [round(float(v), 3) for v in psnr(made, full[images.start : images.stop])]
            yield name, {"configuration": configuration.to_json(), "psnr": known + values}
    inside.switch.restore()


def one_by_one(study: Study) -> dict[str, float]:
    """What each layer changes in four calls if it alone has its option of about three bits: what a study without
    gradients uses."""
    inside = study.workspace
    inside.switch.restore()
    difference, found = OutputDifference(inside.parts[0].denoiser, inside.statistics.calls.some(4)), {}
    for layer in inside.space.layers:
        inside.switch.write(layer, inside.bank.get(layer, inside.bank.near(layer, 3.0)))
        found[layer] = float(f"{float(difference().mean()):.6g}")
        inside.switch.write(layer, None)
    return found


def ranked(study: Study, rows: Rows, alone: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation with the mean PSNR, of each way to rank, for each kind of configuration. ``alone``:
    what each layer changes by itself."""
    inside = study.workspace
    bank = inside.bank
    names = {kind: [n for n in rows if n.startswith(kind)] for kind in KINDS}
    configurations = {n: Configuration.from_json(row["configuration"]) for n, row in rows.items()}
    quality = {n: float(np.mean(row["psnr"])) for n, row in rows.items()}

    def rank(values: Mapping[str, Mapping[Option, float]]) -> dict[str, float]:
        sums = {n: sum(values[layer][o] for layer, o in c.items()) for n, c in configurations.items()}
        return {kind: _correlation([-sums[n] for n in of], [quality[n] for n in of]) for kind, of in names.items()}

    def fitted(seen: Sequence[str], unseen: Sequence[str]) -> float:
        return _correlation(predicted(study, rows, seen, unseen), [quality[n] for n in unseen])

    relative = {n: {o: e.relative for o, e in of.items()} for n, of in bank.errors.items()}
    independent = {
        n: {o: e.relative if e.cost is None else e.cost for o, e in of.items()} for n, of in bank.errors.items()
    }
    changes = {
        n: {o: of.values[i].double().numpy() for i, o in enumerate(inside.space.options[n])}
        for n, of in bank.changes.of.items()
    }
    third = np.minimum(3 * np.array(next(iter(bank.changes.of.values())).places), 2).astype(int)

    def together(configuration: Configuration) -> float:
        return float(np.square(sum(changes[n][o] for n, o in configuration.items())).mean())

    def in_third(number: int) -> dict[str, dict[Option, float]]:
        steps = third == number
        return {n: {o: float(np.square(v[steps]).mean()) for o, v in of.items()} for n, of in changes.items()}

    by_themselves = {
        n: {o: alone[n] * relative[n][o] / max(relative[n][bank.near(n, 3.0)], 1e-12) for o in relative[n]}
        for n in inside.space.layers
    }
    sums = {n: together(c) for n, c in configurations.items()}
    found = {
        "sum of relative errors": rank(relative),
        "squared gradients": rank(independent),
        "layers changed one by one": rank(by_themselves),
        "changes of the output": rank(bank.costs() or relative),
        "… with what layers do together": {
            kind: _correlation([-sums[n] for n in of], [quality[n] for n in of]) for kind, of in names.items()
        },
        **{f"… in {name} steps alone": rank(in_third(i)) for i, name in enumerate(THIRDS)},
    }
    splits = [list(np.random.default_rng(s).permutation(names["random"])) for s in range(_SPLITS)]
    for count in _SEEN:
        found[f"damage model, {count} random records"] = {
            "random": float(np.mean([fitted(s[:count], s[max(_SEEN) :]) for s in splits])),
            "near": float(np.mean([fitted(s[:count], names["near"]) for s in splits])),
            **({} if count else {"alone": fitted([], names["alone"])}),
        }
    found["the same images' other half"] = {kind: _ceiling([rows[n]["psnr"] for n in of]) for kind, of in names.items()}
    return {name: {kind: round(v, 3) for kind, v in of.items()} for name, of in found.items()}


def predicted(study: Study, rows: Rows, seen: Sequence[str], unseen: Sequence[str]) -> np.ndarray:
    """PSNR of unseen configurations by the damage model that was fitted to the seen ones."""
    inside = study.workspace
    configurations = [Configuration.from_json(rows[n]["configuration"]) for n in [*seen, *unseen]]
    choices, ones = inside.space.encode_partial(configurations), np.ones(len(seen), dtype=int)
    errors = -DECIBEL * np.array([float(np.mean(rows[n]["psnr"])) for n in seen])
    model = fit_damage(inside.encoding.damage, Observations(choices[: len(seen)], errors, ones, 0 * ones))
    return np.asarray(-model.predict(choices[len(seen) :]) / DECIBEL)


def taught(study: Study, rows: Rows) -> dict[str, dict[str, float]]:
    """Standard deviation, in dB, of what the damage model gets wrong of unseen configurations of each kind, after it
    has seen random configurations, or some near the frontier."""
    found: dict[str, dict[str, float]] = {}
    names = {kind: [n for n in rows if n.startswith(kind)] for kind in KINDS[:2]}
    for kind, of in names.items():
        for count in _SEEN:
            for judged, others in names.items():
                wrong = []
                for split in range(_SPLITS):
                    order = [of[i] for i in np.random.default_rng(split).permutation(len(of))]
                    unseen = order[max(_SEEN) :] if judged == kind else others
                    quality = np.array([np.mean(rows[n]["psnr"]) for n in unseen])
                    wrong.append(float(np.std(predicted(study, rows, order[:count], unseen) - quality)))
                found.setdefault(f"{count} {kind}", {})[judged] = round(float(np.mean(wrong)), 2)
    return found


def _correlation(a: Sequence[float] | np.ndarray, b: Sequence[float]) -> float:
    return float(spearmanr(a, b).statistic)


def _ceiling(values: Sequence[Sequence[float]]) -> float:
    """The rank correlation that true quality would have with the mean of all images, from both halves (Spearman and
    Brown)."""
    table = np.array(values)
    halves = _correlation(table[:, ::2].mean(axis=1), list(table[:, 1::2].mean(axis=1)))
    return float(np.sqrt(2 * halves / (1 + halves)))


def write_docs(kept: Mapping[str, Any]) -> None:
    """Replace the tables between the markers of docs/sensitivity.md and docs/sampling.md."""
    models = [model for model in kept if "found" in kept[model]]
    if not models:
        return
    lines = ["| ranked by | " + " | ".join(models) + " |", "|" + "---|" * (len(models) + 1)]
    for name in kept[models[0]]["found"]:
        cells = [[f"{kept[m]['found'][name].get(kind, float('nan')):.2f}" for kind in KINDS] for m in models]
        lines.append(f"| {name} | " + " | ".join(" · ".join(c).replace("nan", "–") for c in cells) + " |")
    write_table("sensitivity.md", "gradients", lines)
    models = [model for model in models if "taught" in kept[model]]
    lines = ["| measured | " + " | ".join(models) + " |", "|" + "---|" * (len(models) + 1)]
    for name in kept[models[0]]["taught"] if models else ():
        cells = [" · ".join(f"{v:.1f}" for v in kept[m]["taught"][name].values()) for m in models]
        count, kind = name.split()
        lines.append(f"| {count} {'random' if kind == 'random' else 'near the frontier'} | " + " | ".join(cells) + " |")
    write_table("sampling.md", "taught", lines)


if __name__ == "__main__":
    main()
