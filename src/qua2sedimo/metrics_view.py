"""What `metrics` shows: each metric's meaning, its measured cost and need of images, and whether it can be had here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qua2sedimo.formats.files import read_json
from qua2sedimo.metrics.catalogue import METRICS, Metric

_KINDS = {
    "paired": "image by image with full precision",
    "set": "the set of images with another set",
    "input": "each image with what was asked for",
}


#: Metrics that are another one in other units: their images and their cost are the other's.
MEASURED_AS = {"features_db": "features"}


def measured(name: str) -> dict[str, Any]:
    """What benchmarks/metrics.py measured of a metric, empty if it was not: of the shipped model that asks for most.

    ``images``: the fewest of those tried that rank reliably, None if none did; ``cost``: its time over that of making
    the images.
    """
    key = MEASURED_AS.get(name, name).partition(":")[0]
    found = [m["metrics"][key] for m in _benchmark().values() if key in m["metrics"]]
    if not found:
        return {}
    images = [one["images"] for one in found]
    return {"images": None if None in images else max(images), "cost": max(one["cost"] for one in found)}


def _benchmark() -> dict[str, Any]:
    """Shipped model → how its metrics were measured, and what came of it."""
    content: dict[str, Any] = read_json(files("qua2sedimo.metrics").joinpath("metrics.json"))  # type: ignore[arg-type]
    models: dict[str, Any] = content["models"]
    return models


def _least_images() -> int:
    """With how many images at least values were compared."""
    return int(min(m["most"] for m in _benchmark().values()))


def document(m: Metric) -> dict[str, Any]:
    """Everything that is known of a metric, for machines."""
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", style="bold", no_wrap=True)
    table.add_column("compares", no_wrap=True)
    table.add_column("better", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for kind in _KINDS:
        for m in (m for m in shown if m.kind == kind):
            here = m.here()
            short = {"yes": "yes", "downloads": "online"}.get(here, "no")
            table.add_row(m.name, _against(m), _better(m), _images(m), _cost(m), short)
        table.add_section()
    return table


def metrics_notes() -> Iterator[str]:
    """The legend of the table."""
    models = list(_benchmark().values())
    steps = sorted({m["steps"] for m in models})
    yield (
        f"images: from how many on configurations rank as by {_least_images():,} images of their own (rank correlation "
        f"≥ {models[0]['threshold']:g}), of {models[0]['configurations']} random configurations of "
        f"{', '.join(_benchmark())}: the model that needs most. cost: its time over that of making the images, in "
        f"{' or '.join(map(str, steps))} steps: the model where it is largest."
    )
    yield (
        "here: `online` if downloaded at first use, or `no`: `qua2sedimo metrics NAME` says what is missing. "
        "In study.yaml, `metrics:` takes several at once, and `objective:` the one that is learned."
    )


def metric_panel(m: Metric) -> Panel:
    """One metric, explained."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    unit = f", in {m.unit}" if m.unit else ""
    rows = [
        ("compares", f"{_KINDS[m.kind]}{_whom(m)}"),
        ("better", f"{'higher' if m.higher_is_better else 'lower'}{unit}"),
        ("images", _images_sentence(m)),
        ("cost", _cost_sentence(m)),
        ("needs", m.needs or "nothing but this package"),
        ("here", _here(m)),
    ]
    for key, value in rows:
        grid.add_row(key, value)
    content = Table.grid(padding=(0, 0, 1, 0))
    content.add_row(Text(m.explanation))
    content.add_row(grid)
    return Panel(
        content, title=f"[bold]{m.name}[/bold] · {m.title}", title_align="left", box=box.ROUNDED, padding=(1, 2)
    )


def _against(m: Metric) -> str:
    if m.kind == "input":
        return "image, what was asked"
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
    return (
        f"{found['images']:,}"
        if found["images"] is not None
        else f"> {min(max(m['counts']) for m in _benchmark().values()):,}"
    )


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
    made = "at most of the time that a shipped model takes for the images, in few steps"
    return f"{_cost(m)} {made}" if "cost" in measured(m.name) else "not measured"


def _here(m: Metric) -> str:
    here = m.here()
    return "on first use, from the network" if here == "downloads" else here


__all__ = ["METRICS", "document", "measured", "metric_panel", "metrics_notes", "metrics_table"]
