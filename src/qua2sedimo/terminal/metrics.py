"""The metrics explained: meaning, measured cost, images needed to rank reliably, and whether each works here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from rich import box
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from qua2sedimo.formats.files import read_json
from qua2sedimo.metrics.catalogue import Metric
from qua2sedimo.terminal.console import table

_KINDS = {
    "paired": "image by image with full precision",
    "set": "the set of images with another set",
    "input": "each image with its prompt or class",
}

#: Metrics that are another one in other units, with the same cost and the same need of images.
MEASURED_AS = {"features_db": "features"}


def measured(name: str) -> dict[str, Any]:
    """What benchmarks/metrics.py measured of a metric, at its worst over the shipped models; empty if not measured.

    ``images``: fewest that rank configurations reliably, None if no number tried did; ``cost``: its time divided by the
    time of generating the images.
    """
    key = MEASURED_AS.get(name, name).partition(":")[0]
    found = [m["metrics"][key] for m in _benchmark().values() if key in m["metrics"]]
    if not found:
        return {}
    images = [one["images"] for one in found]
    return {"images": None if None in images else max(images), "cost": max(one["cost"] for one in found)}


def _benchmark() -> dict[str, Any]:
    """Shipped model → how its metrics were measured, with the results."""
    content: dict[str, Any] = read_json(files("qua2sedimo.metrics").joinpath("metrics.json"))  # type: ignore[arg-type]
    models: dict[str, Any] = content["models"]
    return models


def _least_images() -> int:
    """The fewest images, over the shipped models, that the reference rankings rest on."""
    return int(min(m["most"] for m in _benchmark().values()))


def document(m: Metric) -> dict[str, Any]:
    """Everything known about a metric, as JSON data."""
    return {
        "name": m.name,
        "title": m.title,
        "unit": m.unit,
        "better": "higher" if m.higher_is_better else "lower",
        "kind": m.kind,
        "against": m.against if m.kind != "input" else "input",
        "of": m.of,
        "explanation": m.explanation,
        "needs": m.needs or None,
        "here": m.here(),
        "images": measured(m.name).get("images"),
        "cost": measured(m.name).get("cost"),
    }


def metrics_table(shown: list[Metric]) -> Table:
    """A line a metric, for 80 columns."""
    first = Column("metric", style="bold", no_wrap=True)
    words = [Column(name, no_wrap=True) for name in ("compares", "better")]
    made = table(first, *words, "images", "cost", Column("here", no_wrap=True))
    for kind in _KINDS:
        for m in (m for m in shown if m.kind == kind):
            here = {"yes": "yes", "downloads": "online"}.get(m.here(), "no")
            made.add_row(m.name, _against(m), _better(m), _images(m), _cost(m), here)
        made.add_section()
    return made


def metrics_notes() -> Iterator[str]:
    """The legend of the table."""
    models = list(_benchmark().values())
    steps = sorted({m["steps"] for m in models})
    yield (
        f"images: how many are needed to rank configurations as {_least_images():,} images of their own do (rank "
        f"correlation ≥ {models[0]['threshold']:g}), of {models[0]['configurations']} random configurations of "
        f"{', '.join(_benchmark())}: the model that needs most. cost: its time relative to generating the images in "
        f"{' or '.join(map(str, steps))} steps: the model where it is largest."
    )
    yield (
        "here: `online` if it is downloaded at first use, `no` if something is missing: `qua2sedimo metrics NAME` says "
        "what. In study.yaml, `metrics:` takes several at once, and `objective:` is the one that is learned."
    )


def metric_panel(m: Metric) -> Panel:
    """One metric, explained."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    unit = f", in {m.unit}" if m.unit else ""
    rows = [
        ("compares", f"{_KINDS[m.kind]}{_whom(m)}"),
        ("better", f"{_better(m)}{unit}"),
        ("images", _images_sentence(m)),
        ("cost", _cost_sentence(m)),
        ("needs", m.needs or "nothing but this package"),
        ("here", "on first use, from the network" if m.here() == "downloads" else m.here()),
    ]
    for key, value in rows:
        grid.add_row(key, value)
    content = Table.grid(padding=(0, 0, 1, 0))
    content.add_row(Text(m.explanation))
    content.add_row(grid)
    title = Text.assemble((m.name, "bold"), f" · {m.title}")
    return Panel(content, title=title, title_align="left", box=box.ROUNDED, padding=(1, 2))


def _against(m: Metric) -> str:
    if m.kind == "input":
        return "image, prompt or class"
    what = "latents" if m.of == "latents" else "images" if m.kind == "paired" else "sets"
    return f"{what}, {'real' if m.against == 'real' else 'full precision'}"


def _whom(m: Metric) -> str:
    if m.kind != "set":
        return ""
    return ": real pictures" if m.against == "real" else ": full-precision images of other noise"


def _better(m: Metric) -> str:
    return "higher" if m.higher_is_better else "lower"


def _images(m: Metric) -> str:
    found = measured(m.name)
    if "images" not in found:
        return "–"
    if found["images"] is None:
        return f"> {min(max(m['counts']) for m in _benchmark().values()):,}"
    return f"{found['images']:,}"


def _images_sentence(m: Metric) -> str:
    if "images" not in measured(m.name):
        return "not measured: its weights do not come with the package"
    (first, *_) = _benchmark().values()
    most, of = f"{_least_images():,}", f"of {len(_benchmark())} shipped models"
    return f"{_images(m)} rank configurations {of} as {most} do (rank correlation ≥ {first['threshold']:g})"


def _cost(m: Metric) -> str:
    cost = measured(m.name).get("cost")
    return "–" if cost is None else "< 0.1 %" if cost < 0.001 else f"{100 * cost:.1f} %"


def _cost_sentence(m: Metric) -> str:
    made = "at most of the time that a shipped model takes to generate the images, in few steps"
    return f"{_cost(m)} {made}" if "cost" in measured(m.name) else "not measured"
