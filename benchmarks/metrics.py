"""How many images each metric needs: its rank correlation with its own value over many images.

    python benchmarks/metrics_images.py --model digits-dit         # first: the images
    python benchmarks/metrics.py [--models digits-dit avatars-pixart avatars-unet] [--work FOLDER] [--ratios]

For n = 4, 8, 16, …: 30 times n images are drawn, the same for every configuration as in a study, and the configurations
are ranked by them; the correlation with the ranks by all images there are is averaged, with its 5 % quantile.
Prints a table a model, and writes what `qua2sedimo metrics` reads, and from it the figure and the measured parts of
docs/metrics.md and docs/metrics-images.md. Models that are not asked for, or have no images in FOLDER, keep what was
measured of them before.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr
from torchmetrics.image.fid import FrechetInceptionDistance

from metrics_docs import KEPT, write_docs
from metrics_images import BATCH, CHUNK, RESULTS, chunk_path
from qua2sedimo import zoo
from qua2sedimo.formats.files import read_json, write_text, write_via
from qua2sedimo.images.generate import Generation, Generator
from qua2sedimo.images.pictures import Pictures
from qua2sedimo.measuring.measurer import REFERENCE_IMAGES
from qua2sedimo.metrics.catalogue import BUILT_IN, METRICS
from qua2sedimo.metrics.distances import frechet_distance
from qua2sedimo.metrics.features import pooled_features
from qua2sedimo.metrics.values import SetReferences, per_image, per_set
from qua2sedimo.terminal.metrics import MEASURED_AS

DRAWS = 30
THRESHOLD = 0.95
NAMES = [n for n in BUILT_IN if n not in MEASURED_AS]
PER_IMAGE = [METRICS[n] for n in NAMES if METRICS[n].kind != "set"]
SETS = [METRICS[n] for n in NAMES if METRICS[n].kind == "set"]


def chunk_values(folder: Path, model: str, source: str, chunk: int) -> dict[str, np.ndarray]:
    """Per-image values and features of a chunk, computed once."""
    kept = folder / "values" / f"{source}-{chunk:03d}.safetensors"
    if not kept.exists():
        made = load_file(chunk_path(folder, source, chunk))
        values = {"pooled": pooled_features(made["images"])}
        if source != "other":
            full, entry = load_file(chunk_path(folder, "full", chunk)), zoo.ENTRIES[model]
            inputs = [entry.inputs[(chunk * CHUNK + i) % len(entry.inputs)] for i in range(CHUNK)]
            pictures, exact = (Pictures(x["images"], x["latents"]) for x in (made, full))
            found = per_image(PER_IMAGE, pictures, exact, inputs, zoo.input_score(model))
            values |= {name: np.array(v) for name, v in found.items()}
        write_via(kept, lambda path: save_file(values, path))
    return load_file(kept)


def load(folder: Path, model: str, sources: list[str], chunks: int) -> dict[str, dict[str, np.ndarray]]:
    """Source → name → values of all images."""
    found = {}
    for source in sources:
        parts = [
            chunk_values(folder, model, source, c) for c in range(chunks) if chunk_path(folder, source, c).exists()
        ]
        found[source] = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return found


def values_of(data: list[dict[str, np.ndarray]], rows: np.ndarray, references: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metric → a value for each configuration from the images ``rows``."""
    values = {m.name: [d[m.name][rows].mean() for d in data] for m in PER_IMAGE}
    return values | {m.name: [m.compute(d["pooled"][rows], references[m.against]) for d in data] for m in SETS}


def correlations(
    data: list[dict[str, np.ndarray]], all_other: np.ndarray, real: np.ndarray
) -> dict[str, dict[int, Any]]:
    """Metric → number of images → [mean, 5 % quantile] of the rank correlation."""
    most = len(data[0]["pooled"])
    truth = values_of(data, np.arange(most), {"full": all_other, "real": real})
    references = {"full": all_other[:REFERENCE_IMAGES], "real": real}
    rng = np.random.default_rng(0)
    found: dict[str, dict[int, Any]] = {name: {} for name in truth}
    for n in counts(most):
        drawn = [values_of(data, rng.choice(most, n, replace=False), references) for _ in range(DRAWS)]
        for name in truth:
            ranks = [float(spearmanr(d[name], truth[name]).statistic) for d in drawn]
            ranks = [0.0 if np.isnan(r) else r for r in ranks]  # all equal: no ranking
            found[name][n] = [round(float(v), 4) for v in (np.mean(ranks), np.quantile(ranks, 0.05))]
    return found


def counts(most: int) -> list[int]:
    """4, 8, 16, … at most half of the images: more would share too many with the value they are compared with."""
    return [n for n in (2**k for k in range(2, 12)) if n <= most // 2]


def needed(curve: dict[int, Any]) -> int | None:
    """The fewest images from which on the mean correlation stays at or above the threshold."""
    enough = None
    for n in sorted(curve, reverse=True):
        if curve[n][0] < THRESHOLD:
            break
        enough = n
    return enough


def costs(folder: Path, model: str, arguments: dict[str, Any]) -> dict[str, float]:
    """Time of each metric, interval of set metrics included, over that of making the images; the least of three.

    Both in seconds of this process, so that other programs of the machine count little.
    """
    made, full, other = (load_file(chunk_path(folder, source, 0)) for source in ("000", "full", "other"))
    exact, entry, judge = Pictures(full["images"], full["latents"]), zoo.ENTRIES[model], zoo.input_score(model)
    inputs = [entry.inputs[i % len(entry.inputs)] for i in range(CHUNK)]
    references = SetReferences(lambda: other["images"], zoo.reference_images(model))
    references.prepare(SETS)

    def compare(name: str) -> None:
        m, pictures = METRICS[name], Pictures(made["images"], made["latents"])
        if m.kind == "set":
            per_set([m], pictures.images, references)
        else:
            per_image([m], pictures, exact, inputs, judge)

    pipeline = zoo.load(model)
    pipeline.set_progress_bar_config(disable=True)
    make = Generator(pipeline, Generation(entry.inputs, arguments, batch=BATCH))
    making = least_seconds(lambda: make(0, CHUNK))
    return {name: least_seconds(partial(compare, name)) / making for name in NAMES}


def least_seconds(do: Callable[[], object]) -> float:
    """The least of three; once before, what is kept is loaded."""
    do()
    times = []
    for _ in range(3):
        began = time.process_time()
        do()
        times.append(time.process_time() - began)
    return min(times)


class Injected(torch.nn.Module):
    """Gives features that were computed before to torchmetrics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_ratios() -> dict[str, float]:
    """Time of torchmetrics' Fréchet distance over ours, features given, at sizes that a bootstrap repeats."""
    ratios = {}
    for n, width in ((16, 112), (64, 112), (512, 112), (64, 2048)):
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((n, width)), rng.standard_normal((REFERENCE_IMAGES, width))
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(3):
            began = time.perf_counter()
            ours = frechet_distance(a, b)
            times["ours"].append(time.perf_counter() - began)
            began = time.perf_counter()
            fid = FrechetInceptionDistance(Injected(width)).set_dtype(torch.float64)
            fid.update(torch.from_numpy(a), real=False)
            fid.update(torch.from_numpy(b), real=True)
            theirs = float(fid.compute())
            times["theirs"].append(time.perf_counter() - began)
        assert abs(ours - theirs) < 1e-3 * theirs, (n, width, ours, theirs)
        ratios[f"{n} images, {width} features"] = min(times["theirs"]) / min(times["ours"])
    return ratios


def measure(folder: Path, model: str, configurations: int, images: int) -> dict[str, Any]:
    """What is kept of a model: how it was measured, and of each metric the curve, images enough, and cost."""
    names = [f"{n:03d}" for n in range(configurations)]
    made = min(len(list((folder / s).glob("*.safetensors"))) for s in ["full", *names])
    most = min(made, images // CHUNK) * CHUNK
    data = load(folder, model, [*names, "other"], most // CHUNK)
    real = pooled_features(zoo.reference_images(model).astype(np.float32) / 255)
    found = correlations([data[n] for n in names], data["other"]["pooled"], real)
    about = read_json(folder / "about.json")
    cost = costs(folder, model, about["arguments"])
    bits = [about["average_bits"][n] for n in names]
    return {
        "steps": about["arguments"]["num_inference_steps"], "guidance": about["arguments"]["guidance_scale"],
        "configurations": len(names), "bits": [round(min(bits), 2), round(max(bits), 2)], "most": most,
        "references": [REFERENCE_IMAGES, len(data["other"]["pooled"]), len(real)],
        "draws": DRAWS, "threshold": THRESHOLD, "counts": counts(most),
        "metrics": {
            name: {"images": needed(curve), "cost": float(f"{cost[name]:.2g}"), "curve": curve}
            for name, curve in found.items()
        },
    }  # fmt: skip


def show(model: str, content: dict[str, Any]) -> None:
    print(f"\n{model}: rank correlation with {content['most']} images, {content['steps']} steps\n")
    print("metric".ljust(14) + "".join(f"{n:>7}" for n in content["counts"]) + "   needed     cost")
    for name, m in content["metrics"].items():
        cells = "".join(f"{mean:7.3f}" for mean, _ in m["curve"].values())
        print(f"{name:<14}{cells} {m['images'] or '>':>8} {100 * m['cost']:7.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits-dit", "avatars-pixart", "avatars-unet"])
    parser.add_argument("--configurations", type=int, default=12)
    parser.add_argument("--images", type=int, default=2000, help="at most so many of those there are")
    parser.add_argument("--work", type=Path, default=RESULTS, help="where metrics_images.py keeps the images")
    parser.add_argument("--ratios", action="store_true", help="also time torchmetrics' Fréchet distance (minutes)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = read_json(KEPT)
    for model in given.models:
        folder = given.work / f"metrics-{model}"
        if not folder.exists():
            print(f"{model}: no images in {folder}")
            continue
        kept["models"][model] = measure(folder, model, given.configurations, given.images)
        show(model, kept["models"][model])
    if given.ratios:
        kept["frechet_ratios"] = frechet_ratios()
    text = json.dumps(kept, indent=1)
    write_text(KEPT, re.sub(r"\[[^\[\]]*\]", lambda found: " ".join(found[0].split()), text))  # a list on a line
    write_docs(read_json(KEPT))


if __name__ == "__main__":
    main()
