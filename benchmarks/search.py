"""The best configuration of a size that each procedure finds, for the same images: quality at equal bits, and against
images.

    python benchmarks/search.py --program
    python benchmarks/search.py [--models digits-dit …] [--bits 3.5 …] [--images 1000] [--random 500] [--seeds 0 1 2]
    [--judged 64] [--work FOLDER] [--tenth]
    python benchmarks/search_docs.py        # tables and figure from what was measured before

Procedures: uniform options; sum of errors; first and last layers high; random search; each layer measured alone, by
integer program and greedily; the paper's (random records, a predictor, each layer's best option, moved to the
budget); ours, with snapshots of what it would answer after fewer images; the paper's with as many random records as
it was published with, and a search for a tenth of their images. All are judged by PSNR and Fréchet distance on the same
images, which no procedure saw; ours at 3.5 bits also with activations rounded to 8 and 6 bits. Everything measured is
kept in FOLDER: stopped, it goes on. Rows go to docs/figures/search.json, in the place of those of the same model, seed
and objective (``--tenth``: of the last two procedures alone); docs/search-results.md is written anew from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qua2sedimo import Study, StudySettings, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.images.ledger import EVALUATION, LEARNING, USE_OF_ROLE
from qua2sedimo.inspection import inspected
from qua2sedimo.metrics.distances import frechet_distance, psnr
from qua2sedimo.metrics.estimates import mean_estimate
from qua2sedimo.metrics.features import pooled_features
from qua2sedimo.options import Configuration
from qua2sedimo.predictor import FitSettings, fit_ensemble
from qua2sedimo.sampling import sample
from qua2sedimo.search import (
    Evidence,
    Values,
    argmax_configuration,
    best_configurations,
    most_likely,
    one_at_a_time,
    sum_of_errors,
)
from qua2sedimo.sensitivity import op_scores
from qua2sedimo.study.evidence import FEW, evidence, measure_singles
from qua2sedimo.study.measurements import images_spent, measure_all, per_image
from qua2sedimo.study.worker import activations_at
from search_docs import PUBLISHED, TENTH, keep_rows, kept_rows, write_docs

RESULTS = Path(__file__).parent / "results"
SDXL = Path(__file__).parent.parent / "tests" / "denoisers" / "configs" / "sdxl-base-1.0.json"
JUDGED = EVALUATION.first  # the first image that judges
ROUNDED_AT = 3.5  # average bits at which activations are rounded, too
RECORDS = 500  # random records of the paper's procedure
Proposed = tuple[str, int, Configuration]  # procedure, images it spent, its answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--bits", nargs="*", type=float, default=[3.0, 3.5, 4.0])
    parser.add_argument("--images", type=int, default=1000, help="The most a procedure may spend.")
    parser.add_argument("--random", type=int, default=500, help="The most random search spends, at each size.")
    parser.add_argument("--judged", type=int, default=64, help="Images that judge each answer.")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--objective", default="psnr", help="What procedures maximise, in decibels.")
    parser.add_argument("--work", type=Path, default=RESULTS / "search")
    parser.add_argument("--tenth", action="store_true", help="Only the paper's published size, and a tenth of it.")
    parser.add_argument("--program", action="store_true", help="Only time the integer program on SDXL's shapes.")
    asked = parser.parse_args()
    if asked.program:
        program()
        return
    for seed in asked.seeds:
        for model in asked.models:
            place = (model, seed, asked.objective)
            anew = (TENTH, PUBLISHED) if asked.tenth else None
            rows = [
                r for r in kept_rows()
                if (r["model"], r["seed"], r["objective"]) != place or (anew and r["procedure"] not in anew)
            ]  # fmt: skip
            for row in compare(model, seed, asked):
                rows.append(row)
                print(
                    f"{model} {seed} {row['asked']!s:>5} {row['procedure']!s:30} {row['average_bits']:6.3f} bits "
                    f"{row['images']:6} images  {row['psnr']:6.2f} [{row['low']:.2f}, {row['high']:.2f}] dB  "
                    f"Fréchet {row['frechet']:.4f}",
                    flush=True,
                )
                keep_rows(rows)
    write_docs(kept_rows())


def compare(model: str, seed: int, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a procedure and size, measured or read."""
    entry = zoo.ENTRIES[model]
    settings = StudySettings(
        model=model, inputs=list(entry.inputs), arguments=dict(entry.arguments), images=FEW, metrics=["psnr"],
        seed=seed, objective=asked.objective,
    )  # fmt: skip
    of = "" if asked.objective == "psnr" else "-" + re.sub(r"[^a-z0-9.]+", "-", asked.objective)
    study = Study.create(asked.work / f"{model}-{seed}{of}", settings)
    study.quantize()
    judge = _Judge(study, asked.judged)
    for bits in asked.bits:
        answered = tenth(study, bits) if asked.tenth else answers(study, bits, asked.images, asked.random)
        for name, spent, configuration in answered:
            yield judge.row(f"{bits:g}", name, spent, configuration)
            if name == "ours, search" and bits == ROUNDED_AT:
                for width in (8, 6):
                    yield judge.row(f"{bits:g}", f"ours, W{bits:g}A{width}", spent, configuration, width)
    for option in () if asked.tenth else sorted(study.workspace.space.union, key=lambda o: o.bits):
        if option.bits <= max(asked.bits) + 2:
            yield judge.row("any", f"uniform {option}", 0, study.workspace.space.uniform(option))


def answers(study: Study, bits: float, images: int, random: int) -> Iterator[Proposed]:
    """What each procedure answers; those that measure spend at most ``images``, and are asked after fewer, too."""
    space = study.workspace.space
    nbytes = int(bits * space.weights / 8)
    layers = FEW * len(space.layers)
    measure_singles(study.workspace, progress=_say)
    singles = evidence(study.workspace, ["single"])
    yield "sum of errors, program", 0, _best(singles, sum_of_errors(singles), nbytes)
    yield "first and last high, program", 0, _ends_high(study, nbytes)
    yield "one layer at a time, program", layers, _best(singles, one_at_a_time(singles), nbytes)
    yield "one layer at a time, greedy", layers, _greedy(singles, nbytes)
    yield "ours, layers alone", layers, _best(singles, most_likely(singles), nbytes)

    branch = _branch(study, f"ours-{bits:g}-{images}", "single")
    found = branch.search(bits, images, progress=_say)
    known = evidence(branch.workspace)
    for spent in (images // 3, images // 2):
        if layers < spent < FEW * len(known.measured):
            early = replace(known, measured=known.measured[: spent // FEW])
            yield "ours, rounds without finals", spent, _best(early, most_likely(early), nbytes)
    yield "ours, rounds without finals", FEW * len(known.measured), _best(known, most_likely(known), nbytes)
    yield "ours, search", images_spent(branch.workspace), found.choice.configuration
    yield from _random(study, bits, nbytes, random)
    total = _paper(study, images // FEW)
    yield "paper: predictor, argmax", images // FEW * FEW, argmax_configuration(space, total, nbytes)
    yield "paper's scores, program", images // FEW * FEW, _best(evidence(study.workspace, []), total, nbytes)
    yield from tenth(study, bits)


def tenth(study: Study, bits: float) -> Iterator[Proposed]:
    """The paper's procedure as it was published, and ours for a tenth of its images, from nothing."""
    space, images = study.workspace.space, FEW * RECORDS
    branch = _branch(study, f"tenth-{bits:g}")
    found = branch.search(bits, images // 10, progress=_say)
    yield TENTH, images_spent(branch.workspace), found.choice.configuration
    nbytes = int(bits * space.weights / 8)
    yield PUBLISHED, images, argmax_configuration(space, _paper(study, RECORDS), nbytes)


def _random(study: Study, bits: float, nbytes: int, images: int) -> Iterator[Proposed]:
    """The best of random configurations just within the size."""
    space, count = study.workspace.space, images // FEW
    drawn = (
        sample(space, "spread", study.workspace.settings.seed + 1000, i, (bits - 0.1, bits)) for i in range(4 * count)
    )
    fitting = list(islice((c for c in drawn if space.nbytes(c) <= nbytes), count))
    role = f"random {bits:g}"
    USE_OF_ROLE[role] = LEARNING  # no search knows this role
    measured = measure_all(study.workspace, role, fitting, LEARNING.images(FEW), role, _say)
    quality = [float(np.mean(per_image(study.workspace, m))) if m else -np.inf for m in measured]
    for part in sorted({count // 4, count // 2, count}):
        yield "random search", FEW * part, fitting[int(np.argmax(quality[:part]))]


@lru_cache(maxsize=2)
def _paper(study: Study, count: int) -> Values:
    """What the predictor makes of ``count`` random configurations of all sizes: its scores at hop 0."""
    space, seed = study.workspace.space, study.workspace.settings.seed
    records = [sample(space, "spread", seed, i, (2.0, 6.0)) for i in range(count)]
    measured = measure_all(study.workspace, "sample", records, range(FEW), "random records", _say)
    quality = np.array([np.mean(per_image(study.workspace, m)) for m in measured if m])
    choices = np.stack([space.encode(c) for c in records])
    return op_scores(
        space,
        study.workspace.encoding,
        fit_ensemble(study.workspace.encoding, choices, quality, FitSettings(seed=seed)),
    ).total()


def _branch(study: Study, name: str, role: str | None = None) -> Study:
    """A study beside this one that knows nothing, or only its records of this role."""
    folder = study.folder.parent / f"{study.folder.name}-{name}"
    if not folder.exists():
        folder.mkdir(parents=True)
        shutil.copy(study.folder / "graph.json", folder / "graph.json")
        shutil.copytree(study.folder / "bank", folder / "bank", copy_function=os.link)
        study.workspace.settings.save(folder / "study.yaml")
    made = Study(folder, study.workspace.pipeline)
    for record in study.workspace.records.all(role) if role else ():
        made.workspace.records.add(record)
    study.workspace.switch.restore()
    return made


def _best(known: Evidence, values: Values, nbytes: int) -> Configuration:
    return next(best_configurations(known.space, values, nbytes, 1))


def _ends_high(study: Study, nbytes: int) -> Configuration:
    """The first and last layer at their best option, the rest at the best uniform option that fits, enlarged in
    order."""
    space, errors = study.workspace.space, study.workspace.bank.errors
    ends = {space.layers[0], space.layers[-1]}
    values = {n: {o: -e.relative * (1e6 if n in ends else 1.0) for o, e in errors[n].items()} for n in space.layers}
    return next(best_configurations(space, values, nbytes, 1))


def _greedy(known: Evidence, nbytes: int) -> Configuration:
    """From the smallest options, again and again the change that saves most damage a byte."""
    space, values = known.space, one_at_a_time(known)
    chosen = {n: min(space.options[n], key=lambda o: o.nbytes(space.shapes[n])) for n in space.layers}
    room = nbytes - space.nbytes(chosen)
    while True:
        changes = [
            ((values[n][o] - values[n][chosen[n]]) / cost, n, o)
            for n in space.layers
            for o in space.options[n]
            if 0 < (cost := o.nbytes(space.shapes[n]) - chosen[n].nbytes(space.shapes[n])) <= room
        ]
        gain, layer, option = max(changes, default=(0.0, "", None))
        if option is None or gain <= 0:
            return Configuration(chosen)
        room -= option.nbytes(space.shapes[layer]) - chosen[layer].nbytes(space.shapes[layer])
        chosen[layer] = option


class _Judge:
    """PSNR and Fréchet distance on images that no procedure saw; what was judged before is read."""

    def __init__(self, study: Study, images: int) -> None:
        self.study, self.images = study, range(JUDGED, JUDGED + images)
        self.path = study.folder / f"judged-{images}.json"
        self.done = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.references: tuple[np.ndarray, np.ndarray] | None = None

    def row(
        self, asked: str, procedure: str, spent: int, configuration: Configuration, act_bits: int | None = None
    ) -> dict[str, Any]:
        key = configuration.digest + (f" A{act_bits}" if act_bits else "")
        if key not in self.done:
            self.done[key] = self._judge(configuration, act_bits)
            write_json(self.path, self.done)
        values, distance = self.done[key]
        estimate = mean_estimate(np.array(values))
        settings = self.study.workspace.settings
        return {
            "model": settings.model, "seed": settings.seed, "objective": settings.objective, "asked": asked,
            "procedure": procedure, "images": spent,
            "average_bits": self.study.workspace.space.average_bits(configuration),
            "psnr": estimate.value, "low": estimate.low, "high": estimate.high, "frechet": round(distance, 3),
            "values": [round(v, 3) for v in values],
        }  # fmt: skip

    def _judge(self, configuration: Configuration, act_bits: int | None) -> tuple[list[float], float]:
        generator, (start, stop) = self.study.workspace.generator, (self.images.start, self.images.stop)
        if self.references is None:
            self.study.workspace.switch.restore()
            full, other = generator(start, stop), generator(stop, 2 * stop - start)
            self.references = full, pooled_features(other)
        self.study.workspace.switch.apply(configuration)
        with activations_at(self.study.workspace, configuration, act_bits) if act_bits else nullcontext():
            made = generator(start, stop)
        self.study.workspace.switch.restore()
        full, other = self.references
        return [float(v) for v in psnr(made, full)], frechet_distance(pooled_features(made), other)


def program() -> None:
    """Processor seconds of the program for SDXL's layers under the wide options, with sensitivities drawn at random."""
    space = inspected(str(SDXL)).space
    chance = np.random.default_rng(0)
    sensitivity = np.exp(2 * chance.normal(size=len(space.layers)))
    values = {
        n: {o: -float(s * 4.0**-o.bits * np.exp(0.1 * chance.normal())) for o in space.options[n]}
        for n, s in zip(space.layers, sensitivity)
    }
    rows = []
    list(best_configurations(space, values, int(4 * space.weights / 8), 1))  # compiles
    for bits in (2.2, 2.5, 3.0, 3.5, 4.0, 5.0):
        row = {"bits": bits, "layers": len(space.layers), "options": sum(map(len, space.options.values()))}
        for count in (1, 8):
            began = time.process_time()
            list(best_configurations(space, values, int(bits * space.weights / 8), count))
            row[f"seconds, {count} best"] = round(time.process_time() - began, 3)
        rows.append(row)
        print(row, flush=True)
    write_json(RESULTS / "program.json", rows)


_began = time.time()


def _say(done: int, total: int, what: str) -> None:
    if done % 50 == 0 or done == total:
        print(f"  [{time.time() - _began:6.0f} s] {what} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
