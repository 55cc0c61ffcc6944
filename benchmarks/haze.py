"""How much of the Fréchet distance on digits-dit is a haze in the black background, too dark to be seen.

    python benchmarks/search.py --models digits-dit --seeds 2 --work FOLDER      # measures what this reads
    python benchmarks/haze.py FOLDER [--seed 2] [--bits 3.5] [--images 1000] [--judged 64]

Of each answer of one size, on the pictures that judged it there: PSNR, Fréchet distance, how much of what is black in
full precision is 1 to 3 of 255 instead, the Fréchet distance after those pixels were made black again, and that of
full-precision pictures in which they alone were changed. Prints rows and writes benchmarks/results/haze.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from qua2sedimo import Configuration, Study
from qua2sedimo.formats.files import write_json
from qua2sedimo.metrics.distances import frechet_distance, psnr
from qua2sedimo.metrics.features import pooled_features
from qua2sedimo.search import Budget, best_configurations, one_at_a_time, sum_of_errors
from qua2sedimo.study.evidence import evidence
from qua2sedimo.study.stages.choose import kept_choice
from search import JUDGED, RESULTS

MODEL = "digits-dit"
BLACK, FAINT = 0.5 / 255, 3.5 / 255  # below the first, eight bits say 0; between them, 1 to 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="The folder that benchmarks/search.py worked in.")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--bits", type=float, default=3.5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--judged", type=int, default=64)
    asked = parser.parse_args()
    study = Study(asked.work / f"{MODEL}-{asked.seed}")
    start, stop = JUDGED, JUDGED + asked.judged
    study.workspace.switch.restore()
    full, other = (
        study.workspace.generator(start, stop),
        pooled_features(study.workspace.generator(stop, 2 * stop - start)),
    )
    rows = [_row("full precision", full, full, other)]
    for name, configuration in _answers(study, asked).items():
        study.workspace.switch.apply(configuration)
        rows.append(_row(name, study.workspace.generator(start, stop), full, other))
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
    write_json(RESULTS / "haze.json", rows)


def _answers(study: Study, asked: argparse.Namespace) -> dict[str, Configuration]:
    """The answers of one size, as benchmarks/search.py found them."""
    ours = Study(
        study.folder.parent / f"{study.folder.name}-ours-{asked.bits:g}-{asked.images}", study.workspace.pipeline
    )
    choice = kept_choice(ours.workspace, Budget(asked.bits))
    if choice is None:
        raise SystemExit(f"{ours.folder} holds no choice of {asked.bits:g} bits: run benchmarks/search.py first")
    known, nbytes = evidence(study.workspace, ["single"]), int(asked.bits * study.workspace.space.weights / 8)
    simple = {"one layer at a time, program": one_at_a_time(known), "sum of errors, program": sum_of_errors(known)}
    answers = {name: next(best_configurations(known.space, v, nbytes, 1)) for name, v in simple.items()}
    return {"ours, search": choice.configuration, **answers}


def _row(name: str, images: np.ndarray, full: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    black = full < BLACK

    def distance(of: np.ndarray) -> float:
        return round(frechet_distance(pooled_features(of.astype(np.float32)), other), 2)

    return {
        "procedure": name,
        "psnr": round(float(psnr(images, full).mean()), 2),
        "frechet": distance(images),
        "faint": round(float(((images >= BLACK) & (images < FAINT))[black].mean()), 3),
        "frechet, black kept": distance(np.where(black, 0, images)),
        "frechet, black alone changed": distance(np.where(black, images, full)),
    }


if __name__ == "__main__":
    main()
