"""The table at the end: full precision, uniform configurations and ours, on the same fresh images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from qua2sedimo import zoo
from qua2sedimo.formats.files import read_json, write_json, write_via
from qua2sedimo.images.pictures import to_uint8
from qua2sedimo.measuring.replay import replay
from qua2sedimo.metrics.catalogue import BUILT_IN
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.metrics.estimator import Comparison, References
from qua2sedimo.options import Configuration, Option
from qua2sedimo.runtime import set_activation_bits
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.facade import Study
from qua2sedimo.system.progress import Progress, silent

#: What a user would do without this tool: one option for every layer.
UNIFORM = tuple(Option(method, bits) for bits in (4, 3) for method in ("uaq", "kmeans_a", "kmeans_c"))
_SHOWN = 12
#: Images of the comparison are none of those that chose the configuration.
_FIRST = 100_000


@dataclass(frozen=True)
class Row:
    """One line of the table; ``pictures`` are its first images, uint8 [n, height, width, channels]."""

    name: str
    kind: str  # "full", "uniform", "ours", or "activations": ours with its activations rounded too
    configuration: Configuration
    average_bits: float
    nbytes: int
    metrics: dict[str, Estimate]
    pictures: np.ndarray


def compare(
    study: Study,
    choice: Choice,
    packed: Path,
    images: int = 96,
    progress: Progress = silent,
    act_bits: tuple[int, ...] = (),
) -> list[Row]:
    """Measure every row on ``images`` images; rows measured before are read from the study folder.

    The pictures of "ours" come from the packed checkpoint in the folder ``packed``, loaded by a new process.
    ``act_bits`` are widths of activations that ours is measured with besides.
    """
    return _Comparing(study, choice, packed, images, progress, act_bits).rows()


@contextmanager
def activations_at(study: Study, configuration: Configuration, bits: int) -> Iterator[None]:
    """Within, the study's denoiser rounds what the layers of ``configuration`` and attention read to ``bits``.

    Computes what the exported model does with such activations. Raises :class:`Qua2SeDiMoError` if it cannot.
    """
    units = (study.graph.layers[unit] for unit in configuration)
    layers = dict.fromkeys(name for unit in units for name in (unit.module, *unit.copies))
    set_activation_bits(study.denoiser, bits, layers)
    try:
        yield
    finally:
        set_activation_bits(study.denoiser, None)


class _Comparing:
    def __init__(
        self, study: Study, choice: Choice, packed: Path, images: int, progress: Progress, act_bits: tuple[int, ...]
    ) -> None:
        self.study, self.choice, self.packed = study, choice, packed
        self.images = range(_FIRST, _FIRST + images)
        self.folder = study.folder / "comparison"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._act_bits = act_bits
        self._progress, self._done, self._total = progress, 0, len(UNIFORM) + 2 + len(act_bits)
        self._comparison: Comparison | None = None

    def rows(self) -> list[Row]:
        space, study = self.study.space, self.study
        made = [self._row("full precision", "full", Configuration({}), self._full)]
        for option in UNIFORM:
            configuration = space.uniform(option)

            def generate(configuration=configuration) -> np.ndarray:  # type: ignore[no-untyped-def]
                study.switch.apply(configuration)
                return study.generator(self.images.start, self.images.stop)

            made.append(self._row(f"uniform {option}", "uniform", configuration, generate))
        asked, own = f"{self.choice.bits_asked:g}", self.choice.configuration
        made.append(self._row(f"ours, {asked} bits", "ours", own, self._ours))
        made += [
            self._row(f"ours, W{asked}A{bits}", "activations", own, partial(self._rounding, bits))
            for bits in self._act_bits
        ]
        return made

    def _row(self, name: str, kind: str, configuration: Configuration, generate: Callable[[], np.ndarray]) -> Row:
        path = self.folder / f"{_stem(name)}.json"
        pictures = path.with_suffix(".safetensors")
        key = [self.study.identity, self.study.settings.protocol, len(self.images)]
        key += [self.choice.configuration.digest] if kind in ("ours", "activations") else []
        if not (path.exists() and pictures.exists() and read_json(path)["key"] == key):
            images = generate()
            metrics = {m: asdict(e) for m, e in self.comparison(images).items()}
            shown = np.ascontiguousarray(to_uint8(images[:_SHOWN]))
            write_via(pictures, lambda temporary: save_file({"pictures": shown}, temporary))
            write_json(path, {"key": key, "metrics": metrics})
        self._done += 1
        self._progress(self._done, self._total, "comparing with uniform quantization")
        return _read_row(self.study, name, kind, configuration, path)

    @property
    def comparison(self) -> Comparison:
        """Made when the first row has to be measured: its references cost images too."""
        if self._comparison is None:
            study = self.study
            paired = study.full_precision(self.images)
            other = study.full_precision(range(self.images.stop, self.images.stop + len(self.images)))
            real = zoo.reference_images(study.settings.model) if study.settings.model in zoo.ENTRIES else None
            inputs = [i for i in map(study.generator.generation.input, self.images) if i is not None]
            names = [*BUILT_IN, *study.objective.metrics, *study.settings.metrics]
            self._comparison = Comparison(References(paired, other, real), inputs, names, study.input_score)
        return self._comparison

    def _rounding(self, bits: int) -> np.ndarray:
        study, configuration = self.study, self.choice.configuration
        study.switch.apply(configuration)
        with activations_at(study, configuration, bits):
            return study.generator(self.images.start, self.images.stop)

    def _full(self) -> np.ndarray:
        return self.comparison.references.paired

    def _ours(self) -> np.ndarray:
        return replay(self.packed, self.study.generator.generation, self.images, self.folder)


def kept_rows(study: Study, choice: Choice | None) -> list[Row]:
    """The rows in the study's folder that were measured on equally many images, those of ours for ``choice`` only.

    Nothing is measured; none of them if full precision is not among them.
    """
    space, folder = study.space, study.folder / "comparison"
    named = [("full precision", "full", Configuration({}))]
    named += [(f"uniform {option}", "uniform", space.uniform(option)) for option in UNIFORM]
    if choice is not None:
        asked = f"{choice.bits_asked:g}"
        named.append((f"ours, {asked} bits", "ours", choice.configuration))
        named += [(f"ours, W{asked}A{bits}", "activations", choice.configuration) for bits in (8, 6, 4)]
    rows, images = [], None
    for name, kind, configuration in named:
        path = folder / f"{_stem(name)}.json"
        pictures = path.with_suffix(".safetensors")
        if not (path.exists() and pictures.exists()):
            continue
        key = read_json(path)["key"]
        own = [choice.configuration.digest] if choice and kind in ("ours", "activations") else []
        if key[:2] + key[3:] == [study.identity, study.settings.protocol, *own] and images in (None, key[2]):
            images = key[2]
            rows.append(_read_row(study, name, kind, configuration, path))
    return rows if rows and rows[0].kind == "full" else []


def _stem(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def _read_row(study: Study, name: str, kind: str, configuration: Configuration, path: Path) -> Row:
    estimates = {m: Estimate(**e) for m, e in read_json(path)["metrics"].items()}
    bits, nbytes = study.space.average_bits(configuration), study.space.nbytes(configuration)
    pictures = load_file(path.with_suffix(".safetensors"))["pictures"]
    return Row(name, kind, configuration, bits, nbytes, estimates, pictures)


def table_json(rows: list[Row]) -> str:
    """The table for machines."""
    return json.dumps(
        [
            {
                "name": row.name,
                "average_bits": row.average_bits,
                "bytes": row.nbytes,
                "metrics": {m: asdict(e) for m, e in row.metrics.items()},
            }
            for row in rows
        ],
        indent=1,
    )
