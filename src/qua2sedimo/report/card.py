"""A model card for an export: README.md with front matter for the hub, from plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from huggingface_hub import ModelCardData
from PIL import Image

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_text, write_via
from qua2sedimo.report.base_model import BaseModel
from qua2sedimo.report.captions import escaped
from qua2sedimo.report.data import MetricInfo, TableRow
from qua2sedimo.report.text import count_text, digits_for, interval, number, size_text

#: What the export is called where it was measured itself.
OWN = "this export"
_TINY, _MOST = 128, 512  # pixels a picture of the card has at least and at most


@dataclass(frozen=True, eq=False)
class CardPicture:
    """One input painted twice from the same noise, uint8 [height, width(, channels)]."""

    caption: str
    full: np.ndarray
    ours: np.ndarray


@dataclass(frozen=True)
class OperationOptions:
    """How the layers of one operation are stored: option → layers, their weights and packed bytes."""

    operation: str
    options: dict[str, int]
    weights: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class CardData:
    """What a model card tells. What is unknown is empty, and left out or called unknown.

    ``pipeline``: class name; ``code``: Python that loads and calls the model; ``other_bytes``: tensors of the denoiser
    that are not quantized; ``rows``: the study's comparison, ``own_row`` the name of the export's row; ``measured``:
    full precision and the export (:data:`OWN`), as ``measured_how`` says, which is the closer one;
    ``provenance`` and ``commands``: how it was made.
    """

    title: str
    base: BaseModel
    pipeline: str
    denoiser: str
    average_bits: float
    weights: int
    quantized_bytes: int
    other_bytes: int
    act_bits: int | None
    operations: list[OperationOptions]
    code: str
    task: str = ""
    own_row: str = ""
    rows: list[TableRow] = field(default_factory=list)
    metric_infos: list[MetricInfo] = field(default_factory=list)
    measured: list[TableRow] = field(default_factory=list)
    measured_infos: list[MetricInfo] = field(default_factory=list)
    measured_how: str = ""
    pictures: list[CardPicture] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


def write_card(data: CardData, out: Path, force: bool = False) -> Path:
    """Write ``out``/README.md and its pictures to ``out``/images; returns the card's path.

    Raises :class:`Qua2SeDiMoError` if there is a README.md and not ``force``, or the folder cannot be written.
    """
    path = out / "README.md"
    if path.exists() and not force:
        raise Qua2SeDiMoError(f"{path} exists", "Overwrite it with --force, or move it away.")
    for number_, picture in enumerate(data.pictures, 1):
        for which, pixels in (("full", picture.full), ("ours", picture.ours)):
            _write_picture(pixels, out / "images" / f"{number_}-{which}.png")
    write_text(path, render_card(data))
    return path


def render_card(data: CardData) -> str:
    """The card's Markdown, its front matter first."""
    text = _template().render(
        data=data,
        sizes=_sizes(data),
        tables=_tables(data),
        options=sorted({option for row in data.operations for option in row.options}),
        size_text=size_text,
        count_text=count_text,
    )
    return f"---\n{front_matter(data).to_yaml()}\n---\n\n{text}"


def front_matter(data: CardData) -> ModelCardData:
    """The metadata the hub reads; only what is known."""
    base = data.base
    known: dict[str, Any] = {
        "base_model": base.hub,
        "base_model_relation": "quantized" if base.hub else None,
        "license": base.licence,
        "license_name": base.licence_name,
        "license_link": base.licence_link,
        "pipeline_tag": data.task,
    }
    pipeline = [f"diffusers:{data.pipeline}"] if data.pipeline else []
    tags = ["qua2sedimo", "quantized", *pipeline]
    return ModelCardData(library_name="diffusers", tags=tags, **{key: value for key, value in known.items() if value})


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: texts of a study go through `md`, code through `fenced`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": escaped, "fenced": fenced}
    return environment.get_template("card.md.j2")


def fenced(code: str, language: str = "") -> str:
    """A block of code whose fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", code))]))
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def _sizes(data: CardData) -> list[tuple[str, str]]:
    full = 2 * data.weights
    times = f" ({full / data.quantized_bytes:.1f} times smaller)" if data.quantized_bytes else ""
    layers = sum(sum(row.options.values()) for row in data.operations)
    rows = [
        ("quantized weights", f"{count_text(data.weights)} in {layers} layers"),
        ("their size in 16 bits", size_text(full)),
        ("their size here", size_text(data.quantized_bytes) + times),
        ("average bits a weight", f"{data.average_bits:.4f}, every scale, zero point and codebook counted"),
        ("the rest of the denoiser", f"{size_text(data.other_bytes)}, in 16 bits"),
    ]
    return rows + ([("activations", f"rounded to {data.act_bits} bits when the model runs")] if data.act_bits else [])


def _tables(data: CardData) -> list[dict[str, Any]]:
    """What is told of quality, the closest first: measured on the export itself, then the study's comparison."""
    found = []
    if data.measured:
        found.append({"how": data.measured_how, **_metrics(data.measured, data.measured_infos, OWN)})
    if data.rows:
        found.append({"how": "", **_metrics(data.rows, data.metric_infos, data.own_row)})
    return found


def _metrics(shown: list[TableRow], known: list[MetricInfo], own: str) -> dict[str, Any]:
    """A comparison as cells of text: a head, and a row for each model; and what its metrics and images were."""
    infos = [info for info in known if any(info.name in row.metrics for row in shown)]
    arrows = {True: "↑", False: "↓"}
    units = [f" ({info.unit})" if info.unit else "" for info in infos]
    head = ["weights", "bits", "size"]
    head += [f"{escaped(info.title + unit)} {arrows[info.higher_is_better]}" for info, unit in zip(infos, units)]
    measured = {info.name: [row.metrics[info.name] for row in shown if info.name in row.metrics] for info in infos}
    digits = {name: digits_for(values) for name, values in measured.items()}
    rows = []
    for row in shown:
        cells = [_cell(row, info, digits[info.name]) for info in infos]
        name = f"**{escaped(row.name)}**" if row.name == own else escaped(row.name)
        rows.append([name, f"{row.bits:.2f}", size_text(row.nbytes), *cells])
    images = sorted({value.images for row in shown for value in row.metrics.values()})
    return {"head": head, "rows": rows, "infos": infos, "images": images}


def _cell(row: TableRow, info: MetricInfo, digits: int) -> str:
    value = row.metrics.get(info.name)
    if value is None:
        return "–"
    if row.kind == "full" and value.high <= value.low:
        return "same"  # compared with itself
    spread = interval(value, digits)
    return number(value.value, digits) + (f" ({spread})" if spread else "")


def _write_picture(pixels: np.ndarray, path: Path) -> None:
    """Tiny pictures are enlarged without smoothing, large ones scaled down."""
    picture = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    larger = -(-_TINY // max(picture.size))
    if larger > 1:
        picture = picture.resize((picture.width * larger, picture.height * larger), Image.Resampling.NEAREST)
    picture.thumbnail((_MOST, _MOST), Image.Resampling.LANCZOS)
    write_via(path, lambda temporary: picture.save(temporary, "PNG", optimize=True))
