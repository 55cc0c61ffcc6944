"""What docs/metrics.md and docs/metrics-images.md say was measured, and the figure, from the curves that
benchmarks/metrics.py keeps.

    python benchmarks/metrics_docs.py

Writes all anew and measures nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import altair as alt

from pages import FIGURES, write_measured
from qua2sedimo.formats.files import read_json
from qua2sedimo.metrics.catalogue import METRICS

ROOT = Path(__file__).parent.parent
#: Committed, and part of the package: `qua2sedimo metrics` reads it.
KEPT = ROOT / "src/qua2sedimo/metrics/metrics.json"
FIGURE = FIGURES / "metrics-images.svg"

PREAMBLE = """\
{configurations} random configurations of each model. For each number of images, {draws} random subsets are drawn, with
the same images for every configuration, and the configurations are ranked by each subset. *Enough* is the number of
images from which on the mean rank correlation with the ranking by all images stays at {threshold:g} or above. *Cost* is
the time for the metric relative to the time for generating the images. Set metrics compare with {few} full-precision
images, as while measuring, or {real} real ones.{uneven}
"""
UNEVEN = " The models differ in their number of images: with fewer, a subset shares more of them with the whole."
ABOUT = (
    "{most:,} images of each configuration, {bits[0]:.2f} to {bits[1]:.2f} average bits, {steps} sampling steps, "
    "guidance {guidance:g}. Over all images, set metrics compare with {references[1]} full-precision ones. A row has "
    "the mean rank correlation and, in brackets, its 5 % quantile."
)


def enough(model: dict[str, Any], name: str) -> str:
    found = model["metrics"][name]["images"]
    return f"{found}" if found is not None else f"> {model['counts'][-1]}"


def overview(models: dict[str, Any]) -> list[str]:
    """The table of all models: how many images are enough, and the cost."""
    heads = [f"{name}: enough | cost" for name in models]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (2 * len(models) + 1) + "|"]
    for name in next(iter(models.values()))["metrics"]:
        cells = [f"{enough(m, name)} | {100 * m['metrics'][name]['cost']:.2g} %" for m in models.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def rows(model: dict[str, Any]) -> list[str]:
    """The table of one model: a row a metric, a column a number of images."""
    counts = [str(n) for n in model["counts"]]
    lines = [f"| | {' | '.join(counts)} |", "|---" * (len(counts) + 1) + "|"]
    for name, found in model["metrics"].items():
        cells = [f"{mean:.3f} ({low:.2f})" for mean, low in (found["curve"][n] for n in counts)]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def measured_text(content: dict[str, Any]) -> str:
    """The measured part of docs/metrics.md: how many images are enough, in short."""
    models = content["models"]
    (first, *_) = models.values()
    few, _, real = first["references"]
    uneven = UNEVEN if len({model["most"] for model in models.values()}) > 1 else ""
    return "\n".join([PREAMBLE.format(**first, few=few, real=real, uneven=uneven), *overview(models), ""])


def details_text(content: dict[str, Any]) -> str:
    """The measured part of docs/metrics-images.md: the curves."""
    lines = ["![Rank correlation against number of images, a panel a metric](figures/metrics-images.svg)", ""]
    for name, model in content["models"].items():
        lines += [f"## {name}", "", ABOUT.format(**model), "", *rows(model), ""]
    times = ", ".join(f"{ratio:.1f} ({size})" for size, ratio in content["frechet_ratios"].items())
    lines.append(f"Time of torchmetrics' Fréchet distance relative to ours, without the features: {times}.")
    return "\n".join(lines)


def figure(models: dict[str, Any]) -> alt.FacetChart:
    """A panel a metric, a line a model: the mean rank correlation, shaded down to its 5 % quantile."""
    points = [
        {"metric": METRICS[name].title, "model": model, "images": int(n), "mean": mean, "low": low}
        for model, content in models.items()
        for name, found in content["metrics"].items()
        for n, (mean, low) in found["curve"].items()
    ]
    colour = alt.Color("model:N", sort=list(models), title=None, legend=alt.Legend(orient="top"))
    x = alt.X("images:Q", scale=alt.Scale(type="log", base=2), title="images")
    base = alt.Chart().encode(x=x, color=colour)
    line = base.mark_line(point=alt.OverlayMarkDef(size=18)).encode(
        y=alt.Y("mean:Q", title="rank correlation", scale=alt.Scale(zero=False))
    )
    band = base.mark_area(opacity=0.12, line=False).encode(y="low:Q", y2="mean:Q")
    rule = (
        alt.Chart()
        .mark_rule(strokeDash=[4, 3], color="#888")
        .encode(y=alt.datum(next(iter(models.values()))["threshold"]))
    )
    titles = [METRICS[name].title for name in next(iter(models.values()))["metrics"]]
    return (
        alt.layer(band, line, rule, data=alt.Data(values=points))
        .properties(width=170, height=130)
        .facet(facet=alt.Facet("metric:N", sort=titles, title=None), columns=3)
    )


def write_docs(content: dict[str, Any]) -> None:
    """Put texts and figure where the pages show them."""
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure(content["models"]).save(FIGURE)
    write_measured("metrics.md", measured_text(content))
    write_measured("metrics-images.md", details_text(content))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_docs(read_json(KEPT))
