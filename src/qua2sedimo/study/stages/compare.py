"""The final table: full precision, uniform configurations and ours, on the same fresh images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from safetensors.numpy import load_file

from qua2sedimo.formats.document import Document
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.sealed import load_tensors, save_tensors
from qua2sedimo.formats.temporary import temporary_folder
from qua2sedimo.images.ledger import COMPARISON
from qua2sedimo.images.pictures import to_uint8
from qua2sedimo.measuring.run import Crew, Workers
from qua2sedimo.metrics.catalogue import BUILT_IN
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.metrics.estimator import MetricEstimator, References
from qua2sedimo.options import Configuration, Option
from qua2sedimo.quantizers import METHODS
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.worker import check_replayable, crew
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

#: What a user would do without this tool: one option for every layer, rounded to nearest levels.
UNIFORM = tuple(map(Option.parse, ("uaq-6", "uaq-4", "kmeans_a-4", "kmeans_a-3")))
#: What GGUF tools make of a denoiser: linear layers as the first of these types that fits the length of their rows,
#: the others being what these tools fall back to, rounded to nearest levels; all other layers in 16 bits.
OUTSIDE = {
    "GGUF Q4_K": (Option("gguf_k", 4), Option("gguf_0", 5)),
    "GGUF Q8_0": (Option("gguf_0", 8),),
}
_SHOWN = 12
_ACTIVATIONS = (8, 6, 4)
_WHAT = "comparing with uniform quantization"

Kind = Literal["full", "uniform", "outside", "ours", "activations"]


@dataclass(frozen=True)
class Row:
    """One row of the table; ``pictures``: its first images, uint8 [n, height, width, channels].

    ``kind`` is "activations" for ours with its activations rounded too. ``seconds``: those of a picture, if known, in
    16-bit weights but for ours, whose weights are packed.
    """

    name: str
    kind: Kind
    configuration: Configuration
    average_bits: float
    nbytes: int
    metrics: dict[str, Estimate]
    pictures: np.ndarray
    seconds: float | None = None


class KeptRow(Document):
    """comparison/NAME.json, a stored row; its first images are in NAME.safetensors."""

    remedy: ClassVar[str] = "Move it away; the row is measured again by `qua2sedimo report`."

    format: Literal[2] = 2
    identity: str
    protocol: str
    images: int
    digest: str | None
    metrics: dict[str, Estimate]
    seconds: float | None = None

    @classmethod
    def upgraded(cls, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """The format without a number had the first four fields in a list."""
        if "key" not in content or "format" in content:
            return content
        identity, protocol, images, *digest = content["key"]
        own = digest[0] if digest else None
        names = {"identity": identity, "protocol": protocol, "images": images, "digest": own}
        return {"format": 2, **names, "metrics": content["metrics"]}


@dataclass(frozen=True)
class _Line:
    """A row to measure; ``paint``: arguments of the worker's job, None for full precision."""

    name: str
    kind: Kind
    configuration: Configuration
    paint: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def stem(self) -> str:
        return self.name.replace(" ", "-").replace(",", "")


def compare(
    study: Workspace,
    choice: Choice,
    packed: str | Path,
    images: int = 64,
    progress: Progress = silent,
    act_bits: tuple[int, ...] = (),
    workers: Workers = Workers(),
) -> list[Row]:
    """Measure every row on ``images`` images; stored rows are read from the study folder.

    The images of "ours" come from the packed checkpoint in the folder ``packed``, loaded by a new process.
    ``act_bits``: activation widths that ours is also measured with.
    """
    check_replayable(study)
    comparison = _Comparison(study, choice, images)
    lines = _lines(study, choice, packed, act_bits)
    lacking = [line for line in lines if comparison.kept(line) is None]
    if lacking:
        folder = study.folder / "comparison"
        with alone(folder, lambda: progress(0, 1, "waiting for another comparison")):
            lacking = [line for line in lines if comparison.kept(line) is None]
            with crew(study, workers, progress) as at_work:
                comparison.measure(lacking, at_work, progress, len(lines))
    return [comparison.row(line) for line in lines]


def kept_rows(study: Workspace, choice: Choice | None) -> list[Row]:
    """The stored rows that were measured on the same number of images; those of ours only for ``choice``.

    Nothing is measured. Empty if full precision is not among them.
    """
    lines = _lines(study, choice, "", _ACTIVATIONS)
    paths = [_path(study, line) for line in lines]
    counts = [KeptRow.load(path).images for path in paths if path.exists()]
    for images in dict.fromkeys(counts):
        comparison = _Comparison(study, choice, images)
        found = [line for line in lines if comparison.kept(line) is not None]
        if found and found[0].kind == "full":
            return [comparison.row(line) for line in found]
    return []


def _lines(study: Workspace, choice: Choice | None, packed: str | Path, act_bits: Sequence[int]) -> list[_Line]:
    lines = [_Line("full precision", "full", Configuration({}))]
    for option in UNIFORM:
        configuration = study.space.uniform(option)
        lines.append(_Line(f"uniform {option}", "uniform", configuration, {"configuration": configuration.to_json()}))
    for name, types in OUTSIDE.items():
        configuration = as_outside(study.space.shapes, types)
        lines.append(_Line(name, "outside", configuration, {"configuration": configuration.to_json()}))
    if choice is None:
        return lines
    asked, own = f"{choice.bits_asked:.4g}", choice.configuration
    lines.append(_Line(f"ours, {asked} bits", "ours", own, {"packed": str(Path(packed).resolve())}))
    for bits in act_bits:
        how: dict[str, Any] = {"configuration": own.to_json(), "act_bits": bits}
        if choice.polished is not None:
            how["choice"] = choice.name
        lines.append(_Line(f"ours, W{asked}A{bits}", "activations", own, how))
    return lines


def as_outside(shapes: Mapping[str, tuple[int, ...]], types: Sequence[Option]) -> Configuration:
    """Every layer as the first type that fits it, in 16 bits if none does or it is no linear layer."""

    def option(shape: tuple[int, ...]) -> Option:
        fitting = (o for o in types if len(shape) == 2 and METHODS[o.method].fits(shape, o.number))
        return next(fitting, Option("half", 16))

    return Configuration({layer: option(shape) for layer, shape in shapes.items()})


def _path(study: Workspace, line: _Line) -> Path:
    return study.folder / "comparison" / f"{line.stem}.json"


class _Comparison:
    """Rows of a study on ``images`` images: reads stored ones, and measures the others."""

    def __init__(self, study: Workspace, choice: Choice | None, images: int) -> None:
        self.study, self.choice = study, choice
        both = COMPARISON.images(2 * images)
        self.images, self.other = both[:images], both[images:]

    def kept(self, line: _Line) -> KeptRow | None:
        """The stored row; None if there is none, or one of another choice, protocol or number of images."""
        path = _path(self.study, line)
        if not (path.exists() and path.with_suffix(".safetensors").exists()):
            return None
        found = KeptRow.load(path)
        same = found.model_copy(update={"metrics": {}, "seconds": None}) == self._file(line, {}, None)
        return found if same else None

    def row(self, line: _Line) -> Row:
        kept, space = self.kept(line), self.study.space
        assert kept is not None
        tensors, _ = load_tensors(_path(self.study, line).with_suffix(".safetensors"), KeptRow.remedy)
        pictures = tensors["pictures"].numpy()
        bits, nbytes = space.average_bits(line.configuration), space.nbytes(line.configuration)
        return Row(line.name, line.kind, line.configuration, bits, nbytes, kept.metrics, pictures, kept.seconds)

    def measure(self, lines: Sequence[_Line], crew: Crew, progress: Progress, total: int) -> None:
        """Generate the images of these rows, compare them with full precision, and store the rows."""
        ranges = [r for r in (self.images, self.other) if self.study.references.find(r) is None]
        jobs: list[dict[str, Any]] = [{"do": "reference", "start": r.start, "stop": r.stop} for r in ranges]
        crew.do_all(jobs, "generating full-precision images", progress)
        done = total - len(lines)
        progress(done, total, _WHAT)
        for line in lines:
            if line.paint is None:
                self._keep(line, self._estimator.references.paired, None)
                done += 1
                progress(done, total, _WHAT)
        painted = [line for line in lines if line.paint is not None]
        part = {"do": "paint", "start": self.images.start, "stop": self.images.stop}
        with _taken_over(self.study.folder / "comparison") as folder:
            files = [folder / f"{i}.safetensors" for i in range(len(painted))]
            jobs = [{**part, "to": str(to), **(line.paint or {})} for line, to in zip(painted, files)]
            for i, seconds in crew.each(jobs, _WHAT):
                self._keep(painted[i], load_file(files[i])["images"], seconds / len(self.images))
                files[i].unlink()
                done += 1
                progress(done, total, _WHAT)

    def _keep(self, line: _Line, images: np.ndarray, seconds: float | None) -> None:
        path = _path(self.study, line)
        shown = np.ascontiguousarray(to_uint8(images[:_SHOWN]))
        save_tensors(path.with_suffix(".safetensors"), {"pictures": shown})
        self._file(line, self._estimator(images), seconds).save(path)

    def _file(self, line: _Line, metrics: dict[str, Estimate], seconds: float | None) -> KeptRow:
        identity, protocol = self.study.identity, self.study.settings.protocol
        digest = line.configuration.digest if line.kind in ("ours", "activations") else None
        if digest is not None and self.choice is not None and self.choice.polished is not None:
            digest = f"{digest}-{self.choice.polished}"
        of: dict[str, Any] = {"identity": identity, "protocol": protocol, "images": len(self.images), "digest": digest}
        return KeptRow(**of, metrics=metrics, seconds=seconds)

    @cached_property
    def _estimator(self) -> MetricEstimator:
        study = self.study
        paired, other = study.full_precision(self.images), study.full_precision(self.other)
        inputs = [i for i in map(study.generation.input, self.images) if i is not None]
        names = [*BUILT_IN, *study.objective.metrics, *study.settings.metrics]
        references = References(paired, other, study.real_pictures)
        return MetricEstimator(references, inputs, names, study.input_score)


@contextmanager
def _taken_over(folder: Path) -> Iterator[Path]:
    """A temporary folder for images on their way from those who generate them, which take much room.

    Versions before left them in ``folder`` itself when they were killed: such files are removed.
    """
    for leftover in folder.glob("*.images.safetensors"):
        leftover.unlink(missing_ok=True)
    with temporary_folder(folder.resolve()) as temporary:
        yield temporary


def table_json(rows: list[Row]) -> str:
    """The table as JSON."""
    table = [
        {
            "name": row.name, "average_bits": row.average_bits, "bytes": row.nbytes,
            "metrics": {m: e.to_json() for m, e in row.metrics.items()},
        }
        for row in rows
    ]  # fmt: skip
    return json.dumps(table, indent=1)
