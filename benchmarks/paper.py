"""The paper's procedure with 2,000 images beside a choice from 40, among the same six options.

    python benchmarks/paper.py [--models digits-dit …] [--bits 3.25 3.5 3.75] [--work FOLDER]
    python benchmarks/paper.py --docs        # only write the table of docs/compensation.md

The paper's procedure: 500 random configurations of its sampler are measured on 4 images each, a predictor is fitted,
and every layer takes its best option by score, for the trade-off that lands at the size. A choice from 40 images: these
are observed in full precision, and the integer program minimises what the same options are expected to change. Both are
made with the options rounded to the nearest level, as published, and with compensation. Beside them stands what the
default options reach from 40 images, not polished. All are judged by PSNR on 64 images that nothing was learned from.
Measurements are kept in FOLDER, rows in docs/figures/paper.json: stopped, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from compensation import ROOT, Judge, opened
from pages import write_table
from qua2sedimo import Study, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.metrics.estimates import mean_estimate
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import FitSettings, fit_ensemble
from qua2sedimo.quantizers import dequantize_weight
from qua2sedimo.search import Values, argmax_configuration, best_configurations, by_gradients
from qua2sedimo.sensitivity import op_scores
from qua2sedimo.study.evidence import evidence
from qua2sedimo.study.measurements import measure_all, per_image

ROWS = ROOT / "docs" / "figures" / "paper.json"
_RECORDS, _EACH, _OBSERVED, _JUDGED = 500, 4, 40, 64
PUBLISHED, OURS = "its procedure, 2,000 images", f"by gradients, {_OBSERVED} images"
_DEFAULT = "default options"

Choose = Callable[[Study, int], Configuration]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--bits", nargs="*", type=float, default=[3.25, 3.5, 3.75])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "paper")
    parser.add_argument("--docs", action="store_true", help="Only write the table of the page.")
    asked = parser.parse_args()
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for model in [] if asked.docs else asked.models:
        for options, how, study, choose in procedures(asked, model):
            judge = cache(lambda study=study: Judge(study, _JUDGED))  # type: ignore[misc]
            for bits in asked.bits:
                key = f"{model} {bits:g} {options} | {how}"
                if key not in rows:
                    space = study.workspace.space
                    chosen = choose(study, int(bits * space.weights / 8))
                    found = judge()(study.workspace.bank.values(chosen))
                    rows[key] = {"average_bits": round(space.average_bits(chosen), 4), **found}
                    write_json(ROWS, dict(sorted(rows.items())))
                    print(key, {k: v for k, v in rows[key].items() if k != "values"}, flush=True)
            study.workspace.switch.restore()
    write_docs(rows)


def procedures(asked: argparse.Namespace, model: str) -> Iterator[tuple[str, str, Study, Choose]]:
    """(options, procedure, study, what chooses among its options for a number of bytes)."""
    open_study = partial(opened, asked, model, 0)
    seen = open_study(options="paper", rounding="compensated", sampler="paper", observe=_OBSERVED)
    near = open_study(options="paper", rounding="nearest", sampler="paper")
    yield "nearest", PUBLISHED, near, published
    yield "nearest", OURS, near, partial(chosen, values=nearest_costs(seen, near))
    yield "compensated", PUBLISHED, seen, published
    yield "compensated", OURS, seen, chosen
    yield _DEFAULT, OURS, open_study(observe=_OBSERVED), chosen


def published(study: Study, nbytes: int) -> Configuration:
    return argmax_configuration(study.workspace.space, scores(study), nbytes)


@cache
def scores(study: Study) -> Values:
    """What the predictor makes of random configurations of the paper's sampler: its scores at hop 0."""
    inside = study.workspace
    records = [inside.sampler(i) for i in range(_RECORDS)]
    measured = measure_all(inside, "sample", records, range(_EACH), "random records")
    quality = np.array([np.mean(per_image(inside, m)) for m in measured if m])
    choices = np.stack([inside.space.encode(c) for c in records])
    predictor = fit_ensemble(inside.encoding, choices, quality, FitSettings())
    return op_scores(inside.space, inside.encoding, predictor).total()


def chosen(study: Study, nbytes: int, values: Values | None = None) -> Configuration:
    """The best configuration by these scores, or by what gradients expect."""
    values = by_gradients(evidence(study.workspace)) if values is None else values
    return next(best_configurations(study.workspace.space, values, nbytes))


def nearest_costs(seen: Study, near: Study) -> Values:
    """−Σ_c G_c·e_c of options with nearest rounding, by another study's statistics; where a layer has none, its
    relative error times the usual cost of one."""
    errors, found = near.workspace.bank.errors, dict[str, dict[Any, float]]()
    for layer in near.workspace.space.layers:
        observed, weight = seen.workspace.observed(layer), near.workspace.weight(layer)
        if observed.moment is None or observed.gradient is None or not observed.moment.usable:
            continue
        power = observed.moment.power(weight)
        for option in near.workspace.space.options[layer]:
            quantized = dequantize_weight(near.workspace.bank.get(layer, option))
            e, _ = observed.moment.output_errors(weight, quantized, power)
            found.setdefault(layer, {})[option] = float(observed.gradient.cpu() @ e)
    usual = np.median([c / errors[n][o].relative for n, of in found.items() for o, c in of.items() if c > 0])
    return {
        n: {o: -found.get(n, {}).get(o, float(usual) * e.relative) for o, e in of.items()} for n, of in errors.items()
    }


def write_docs(rows: dict[str, Any]) -> None:
    """Replace the table of docs/compensation.md: dB, and the gain over the paper's procedure with its interval."""
    lines = [f"| model | size | options | {PUBLISHED}, dB | {OURS}, dB | gain [95 %] |", "|---|---|---|---|---|---|"]
    for key, row in sorted(rows.items()):
        place, how = key.split(" | ")
        model, bits, options = place.split(" ", 2)
        before = rows.get(f"{model} {bits} {'nearest' if options == _DEFAULT else options} | {PUBLISHED}")
        if how == OURS and before is not None:
            gain = mean_estimate(np.array(row["values"]) - np.array(before["values"]))
            lines.append(
                f"| {model} | {bits} | {options} | {before['psnr']:.1f} | {row['psnr']:.1f} "
                f"| {gain.value:+.1f} [{gain.low:.1f}, {gain.high:.1f}] |"
            )
    write_table("compensation.md", "procedure", lines)


if __name__ == "__main__":
    main()
