"""How many images each metric needs: its rank correlation with its own value over many images.

    python benchmarks/metrics_images.py            # first: the images
    python benchmarks/metrics.py [--model digits-dit]

For n = 4, 8, 16, …: 30 times n images are drawn, the same for every configuration as in a study, and the configurations
are ranked by them; the correlation with the ranks by all images there are is averaged, with its 5 and 95 % quantiles.
Prints a table, and writes benchmarks/results/metrics.json, docs/figures/metrics-images.svg, and what `qua2sedimo
metrics` reads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr
from torchmetrics.image.fid import FrechetInceptionDistance

from metrics_images import CHUNK, RESULTS, chunk_path, folder_of
from qua2sedimo import zoo
from qua2sedimo.evaluation import Generation, Generator
from qua2sedimo.evaluation.distances import frechet_distance
from qua2sedimo.evaluation.features import pooled_features
from qua2sedimo.evaluation.measure import REFERENCE_IMAGES
from qua2sedimo.evaluation.metrics import BUILT_IN, METRICS
from qua2sedimo.evaluation.score import Pictures, SetReferences, per_image, per_set
from qua2sedimo.files import read_json, write_json, write_text, write_via

ROOT = Path(__file__).parent.parent
DRAWS = 30
THRESHOLD = 0.95
PER_IMAGE = [METRICS[n] for n in BUILT_IN if METRICS[n].kind != "set"]
SETS = [METRICS[n] for n in BUILT_IN if METRICS[n].kind == "set"]


def chunk_values(model: str, source: str, chunk: int) -> dict[str, np.ndarray]:
    """Per-image values and features of a chunk, computed once."""
    kept = folder_of(model) / "values" / f"{source}-{chunk:03d}.safetensors"
    if not kept.exists():
        made = load_file(chunk_path(model, source, chunk))
        values = {"pooled": pooled_features(made["images"])}
        if source != "other":
            full, entry = load_file(chunk_path(model, "full", chunk)), zoo.ENTRIES[model]
            inputs = [entry.inputs[(chunk * CHUNK + i) % len(entry.inputs)] for i in range(CHUNK)]
            pictures, exact = (Pictures(x["images"], x["latents"]) for x in (made, full))
            found = per_image(PER_IMAGE, pictures, exact, inputs, zoo.input_score(model))
            values |= {name: np.array(v) for name, v in found.items()}
        write_via(kept, lambda path: save_file(values, path))
    return load_file(kept)


def load(model: str, sources: list[str], chunks: int) -> dict[str, dict[str, np.ndarray]]:
    """Source → name → values of all images."""
    found = {}
    for source in sources:
        parts = [chunk_values(model, source, c) for c in range(chunks) if chunk_path(model, source, c).exists()]
        found[source] = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return found


def values_of(data: list[dict[str, np.ndarray]], rows: np.ndarray, references: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metric → a value for each configuration from the images ``rows``."""
    values = {m.name: [d[m.name][rows].mean() for d in data] for m in PER_IMAGE}
    return values | {m.name: [m.compute(d["pooled"][rows], references[m.against]) for d in data] for m in SETS}


def correlations(
    data: list[dict[str, np.ndarray]], all_other: np.ndarray, real: np.ndarray
) -> dict[str, dict[int, Any]]:
    """Metric → number of images → [mean, 5 %, 95 %] of the rank correlation."""
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
            found[name][n] = [float(np.mean(ranks)), *map(float, np.quantile(ranks, [0.05, 0.95]))]
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


def costs(model: str, steps: int) -> dict[str, float]:
    """Time of each metric, interval of set metrics included, over that of making the images; the least of three."""
    made, full, other = (load_file(chunk_path(model, source, 0)) for source in ("000", "full", "other"))
    pictures, exact = (Pictures(x["images"], x["latents"]) for x in (made, full))
    inputs = [zoo.ENTRIES[model].inputs[i % len(zoo.ENTRIES[model].inputs)] for i in range(CHUNK)]
    references = SetReferences(lambda: other["images"], zoo.reference_images(model))
    references.prepare(SETS)
    judge = zoo.input_score(model)
    seconds = {}
    for name in BUILT_IN:
        m, times = METRICS[name], []
        for _ in range(4):  # the first loads
            began = time.perf_counter()
            if m.kind == "set":
                per_set([m], pictures.images, references)
            else:
                per_image([m], pictures, exact, inputs, judge)
            times.append(time.perf_counter() - began)
        seconds[name] = min(times[1:])
    entry, times = zoo.ENTRIES[model], []
    pipeline = zoo.load(model)
    pipeline.set_progress_bar_config(disable=True)
    make = Generator(pipeline, Generation(entry.inputs, {**entry.arguments, "num_inference_steps": steps}, batch=CHUNK))
    for _ in range(3):
        began = time.perf_counter()
        make(0, CHUNK)
        times.append(time.perf_counter() - began)
    return {name: value / min(times) for name, value in seconds.items()}


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


PREAMBLE = """\
{configurations} random configurations of {model}, {low:.2f} to {high:.2f} average bits, {steps} sampling steps,
{most:,} images of each. For each number of images {draws} subsets are drawn, the same images of every configuration,
and the configurations ranked by them. The table has the mean rank correlation with the ranks by all {most:,} images,
and in brackets the 5 % quantile. *Enough* is from where on the mean stays at {threshold:g} or above. *Cost* is its
time over that of making the images. Set metrics compare with {few} full-precision images, as while measuring (their
value over all images with {many}), or {real} real ones.
"""


def measured_text(summary: dict[str, Any], found: dict[str, dict[int, Any]], ratios: dict[str, float]) -> str:
    """The measured part of docs/metrics.md."""
    (low, high), (few, many, real) = summary["bits"], summary["references"]
    heads = [str(n) for n in summary["counts"]]
    lines = [
        PREAMBLE.format(**summary, low=low, high=high, few=few, many=many, real=real),
        f"| | {' | '.join(heads)} | enough | cost |",
        "|---|" + "---|" * (len(heads) + 2),
    ]
    for name, curve in found.items():
        cells = [f"{mean:.3f} ({least:.2f})" for mean, least, _ in curve.values()]
        enough, cost = summary["metrics"][name]["images"] or f"> {heads[-1]}", summary["metrics"][name]["cost"]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {enough} | {100 * cost:.2g} % |")
    times = ", ".join(f"{ratio:.1f} ({size})" for size, ratio in ratios.items())
    lines += [
        "",
        "![Rank correlation against number of images, a panel a metric](figures/metrics-images.svg)",
        "",
        f"torchmetrics' Fréchet distance takes so many times the time of ours, features given: {times}.",
    ]
    return "\n".join(lines)


def write_docs(text: str) -> None:
    path = ROOT / "docs/metrics.md"
    page = path.read_text()
    start, end = page.index("-->", page.index("<!-- measured")) + 3, page.index("<!-- end -->")
    write_text(path, f"{page[:start]}\n{text}\n{page[end:]}")


def figure(found: dict[str, dict[int, Any]], most: int) -> alt.FacetChart:
    rows = [
        {"metric": METRICS[name].title, "images": n, "mean": mean, "low": low, "high": high, "kind": METRICS[name].kind}
        for name, curve in found.items()
        for n, (mean, low, high) in curve.items()
    ]
    x = alt.X("images:Q", scale=alt.Scale(type="log", base=2), title="images")
    base = alt.Chart().encode(x=x)
    y = alt.Y("mean:Q", title=f"with {most:,} images", scale=alt.Scale(zero=False))
    line = base.mark_line(point=True).encode(y=y)
    band = base.mark_area(opacity=0.2).encode(y="low:Q", y2="high:Q")
    rule = alt.Chart().mark_rule(strokeDash=[4, 3], color="#888").encode(y=alt.datum(THRESHOLD))
    titles = [METRICS[name].title for name in found]
    return (
        alt.layer(band, line, rule, data=alt.Data(values=rows))
        .properties(width=170, height=130)
        .facet(facet=alt.Facet("metric:N", sort=titles, title=None), columns=3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-dit")
    parser.add_argument("--configurations", type=int, default=12)
    parser.add_argument("--images", type=int, default=2000, help="at most so many of those there are")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, names = given.model, [f"{n:03d}" for n in range(given.configurations)]
    made = min(len(list((folder_of(model) / s).glob("*.safetensors"))) for s in ["full", *names])
    chunks = min(made, given.images // CHUNK)
    data = load(model, [*names, "other"], chunks)
    real = pooled_features(zoo.reference_images(model).astype(np.float32) / 255)
    most = chunks * CHUNK
    found = correlations([data[n] for n in names], data["other"]["pooled"], real)
    about = read_json(folder_of(model) / "about.json")
    cost = costs(model, about["steps"])
    bits = [about["average_bits"][n] for n in names]
    print(f"{model}: {len(names)} random configurations of {min(bits):.2f} to {max(bits):.2f} bits")
    print(f"{about['steps']} steps, rank correlation with {most} images\n")
    print("metric".ljust(14) + "".join(f"{n:>7}" for n in counts(most)) + "   needed     cost")
    for name, curve in found.items():
        cells = "".join(f"{curve[n][0]:7.3f}" for n in curve)
        print(f"{name:<14}{cells} {needed(curve) or '>':>8} {100 * cost[name]:7.2f} %")
    ratios = frechet_ratios()
    print("\ntorchmetrics' Fréchet distance over ours, time: " + ", ".join(f"{k}: {v:.1f}" for k, v in ratios.items()))
    summary = {
        "model": model, "steps": about["steps"], "configurations": len(names), "bits": [min(bits), max(bits)],
        "most": most, "references": [REFERENCE_IMAGES, len(data["other"]["pooled"]), len(real)],
        "draws": DRAWS, "threshold": THRESHOLD, "counts": counts(most),
        "metrics": {n: {"images": needed(curve), "cost": float(f"{cost[n]:.2g}")} for n, curve in found.items()},
    }  # fmt: skip
    write_json(RESULTS / "metrics.json", {**summary, "curves": found, "frechet_ratios": ratios})
    write_json(ROOT / "src/qua2sedimo/evaluation/metrics.json", summary)
    target = ROOT / "docs/figures/metrics-images.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure(found, most).save(target)
    write_docs(measured_text(summary, found, ratios))


if __name__ == "__main__":
    main()
