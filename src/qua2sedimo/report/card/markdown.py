"""Writing a model card: README.md with front matter for the hub, from plain data."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_writable, write_text, write_via
from qua2sedimo.formats.text import printable, size_text
from qua2sedimo.report.data import OWN, CardData, MetricInfo, TableRow
from qua2sedimo.report.pictures import fitted
from qua2sedimo.report.templates import template
from qua2sedimo.report.text import cell, count_text, digits_for, escaped, titled

_TINY, _MOST = 128, 512  # pixels a picture of the card has at least and at most


def write_card(data: CardData, out: Path, force: bool = False) -> Path:
    """Write ``out``/README.md and its pictures to ``out``/images; returns the card's path.

    Raises :class:`Qua2SeDiMoError` if there is a README.md and not ``force``, or the folder cannot be written.
    """
    path = check_card(out, force)
    for number, picture in enumerate(data.pictures, 1):
        for which, pixels in (("full", picture.full), ("ours", picture.ours)):
            made = fitted(picture.caption, pixels, _TINY, _MOST)
            write_via(out / "images" / f"{number}-{which}.png", partial(made.save, format="PNG", optimize=True))
    write_text(path, printable(render_card(data)))
    return path


def check_card(out: Path, force: bool = False) -> Path:
    """Where the card of the export ``out`` goes; raises as :func:`write_card` does, before any work."""
    path = out / "README.md"
    if path.exists() and not force:
        raise Qua2SeDiMoError(f"{path} exists", "Overwrite it with --force, or move it away.")
    if out.is_dir():
        check_writable(path)
    return path


def render_card(data: CardData) -> str:
    """The card's Markdown, its front matter first; texts of a study go through ``escaped``, code through ``fenced``."""
    text = template(__file__, "card.md.j2", False, escaped, fenced).render(
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
        ("average bits per weight", f"{data.average_bits:.4f}, every scale, zero point and codebook counted"),
        ("the rest of the denoiser", f"{size_text(data.other_bytes)}, in 16 bits"),
    ]
    return rows + ([("activations", f"rounded to {data.act_bits} bits when the model runs")] if data.act_bits else [])


def _tables(data: CardData) -> list[dict[str, Any]]:
    """The tables of quality, that of more images first: of the export itself, and of the study's comparison."""
    found = []
    if data.measured:
        found.append({"how": data.measured_how, **_metrics(data.measured, data.measured_infos, OWN)})
    if data.rows:
        found.append({"how": "", **_metrics(data.rows, data.metric_infos, data.own_row)})
    return sorted(found, key=lambda table: -max(table["images"], default=0))


def _metrics(shown: list[TableRow], known: list[MetricInfo], own: str) -> dict[str, Any]:
    """A comparison as cells of text: a head, and a row for each model; its metrics and numbers of images."""
    infos = [info for info in known if any(info.name in row.metrics for row in shown)]
    arrows = {True: "↑", False: "↓"}
    measured = {info.name: [row.metrics[info.name] for row in shown if info.name in row.metrics] for info in infos}
    digits = {name: digits_for(values) for name, values in measured.items()}
    rows = []
    for row in shown:
        cells = [cell(row, info, digits[info.name]) for info in infos]
        name = f"**{escaped(row.name)}**" if row.name == own else escaped(row.name)
        texts = [value + (f" ({spread})" if spread else "") for value, spread in cells]
        rows.append([name, f"{row.bits:.2f}", size_text(row.nbytes), *texts])
    return {
        "head": ["weights", "bits", "size", *(f"{escaped(titled(i))} {arrows[i.higher_is_better]}" for i in infos)],
        "rows": rows,
        "infos": infos,
        "images": sorted({value.images for row in shown for value in row.metrics.values()}),
    }
