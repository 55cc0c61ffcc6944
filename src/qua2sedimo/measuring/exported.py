"""Metrics of an export compared with the original model; stored beside its files, and valid for these files only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from qua2sedimo import zoo
from qua2sedimo.denoisers import load_pipeline
from qua2sedimo.denoisers.hub_names import public_name
from qua2sedimo.denoisers.loading import Loading, dtype_name
from qua2sedimo.denoisers.pipelines import loaded_dtype
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import Document
from qua2sedimo.formats.files import sha256
from qua2sedimo.images.generate import Generation, Generator, check_arguments, check_inputs
from qua2sedimo.images.ledger import EVALUATION
from qua2sedimo.images.soundness import check_informative
from qua2sedimo.metrics.catalogue import metric
from qua2sedimo.metrics.estimates import Estimate
from qua2sedimo.metrics.estimator import MetricEstimator, References
from qua2sedimo.runtime.contents import EVALUATION as FILE
from qua2sedimo.runtime.contents import read_info
from qua2sedimo.system.progress import Progress
from qua2sedimo.system.versions import versions


class Evaluation(Document):
    """Metrics of an export and of full precision on the same inputs and noise.

    ``export``: digest of the measured files; ``model``: what they were compared with.
    """

    remedy: ClassVar[str] = "Measure again: qua2sedimo evaluate OUT."

    format: Literal[2] = 2
    export: str
    model: str
    inputs: list[str | int]
    arguments: dict[str, Any]
    seed: int
    versions: dict[str, str]
    metrics: dict[str, Estimate]
    full: dict[str, Estimate]

    def keep(self, folder: Path) -> None:
        """Write it to ``folder``, merged with other metrics stored there if they were measured in the same way."""
        try:
            kept = read_evaluation(folder)
        except Qua2SeDiMoError:  # damaged, or of other files: it is replaced
            kept = None
        if kept is not None and kept._way() == self._way():
            merged = {"metrics": kept.metrics | self.metrics, "full": kept.full | self.full}
            return self.model_copy(update=merged).save(folder / FILE)
        return self.save(folder / FILE)

    def _way(self) -> dict[str, Any]:
        return self.model_dump(exclude={"metrics", "full"})


def read_evaluation(folder: Path) -> Evaluation | None:
    """The stored evaluation of the export ``folder``; None if it was not evaluated.

    Raises :class:`Qua2SeDiMoError` if it is damaged, or was measured on other files than those in the folder.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    found = Evaluation.load(path)
    if found.export != export_digest(folder):
        raise Qua2SeDiMoError(f"{path} was measured on other files than those beside it", Evaluation.remedy)
    return found


def export_digest(folder: Path) -> str:
    """Sixteen hex digits that identify an export: a hash of its configuration, of the checksums in the headers, and of
    all its other files, where it lists them.

    Raises :class:`Qua2SeDiMoError` if a file is missing.
    """
    info = read_info(folder)
    components = [folder / name for name in info.get("components") or [info.get("component") or ""]]
    weights = [sorted(component.glob("*.safetensors")) for component in components]
    counted = {*(component / "config.json" for component in components), *(path for of in weights for path in of)}
    others = sorted({folder / name for name in info.get("files", {})} - counted)
    found = hashlib.sha256()
    try:
        for component, paths in zip(components, weights):
            found.update((component / "config.json").read_bytes())
            for path in paths:
                with path.open("rb") as file:
                    found.update(file.read(int.from_bytes(file.read(8), "little")))
        for path in others:
            found.update(sha256(path).encode())
    except OSError as error:
        raise Qua2SeDiMoError(f"cannot read {error.filename}: {error.strerror}", "Export again.") from error
    return found.hexdigest()[:16]


def evaluate_export(
    folder: Path, model: str, generation: Generation, names: Sequence[str], images: int, progress: Progress,
    loading: Loading = Loading(),
) -> Evaluation:  # fmt: skip
    """Generate ``images`` images with the export in ``folder`` and with ``model``; compare them by metrics ``names``.

    They are from a block that no study fits or selects on. ``progress(done, total, what)`` is called after every batch.
    Raises :class:`Qua2SeDiMoError` if a metric cannot be computed.
    """
    check_comparable(names, model)
    more = images if any(metric(name).kind == "set" for name in names) else 0
    judged = EVALUATION.images(images + more)
    packed = replace(loading, variant=None, revision=None, config=None)  # these are about the original's files
    if loading.dtype == "auto":  # both in the dtype that the export's study measured in
        loading = replace(loading, dtype=dtype_name(loaded_dtype(str(folder), packed) or torch.float32))
    full = _painted(model, generation, judged, partial(_report, progress, "full precision"), loading)
    check_informative(full, [generation.input(i) for i in judged], model)
    own = _painted(str(folder), generation, judged[:images], partial(_report, progress, "exported model"), packed)
    known = model in zoo.ENTRIES
    references = References(full[:images], full[images:], zoo.reference_images(model) if known else None)
    inputs = [i for i in map(generation.input, judged[:images]) if i is not None]
    compared = MetricEstimator(references, inputs, names, zoo.input_score(model) if known else None)
    return Evaluation(
        export=export_digest(folder), model=public_name(model), inputs=list(generation.inputs),
        arguments=dict(generation.arguments), seed=generation.seed, versions=versions(), metrics=compared(own),
        full=compared(full[:images]),
    )  # fmt: skip


def check_comparable(names: Sequence[str], model: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if a metric cannot be computed for an export of ``model``: one of latents, or one
    that needs the classifier or the real images of included models."""
    known = model in zoo.ENTRIES
    for m in map(metric, names):
        judged = m.kind != "input" or m.judge is not None or known
        if m.of == "latents" or not judged or (m.against == "real" and not known):
            raise Qua2SeDiMoError(f"metric '{m.name}' cannot be computed for '{model}'", "Choose another metric.")


def _report(progress: Progress, what: str, done: int, total: int) -> None:
    progress(done, total, what)


def _painted(
    source: str, generation: Generation, images: range, report: Callable[[int, int], object], loading: Loading
) -> np.ndarray:
    pipeline = load_pipeline(source, loading)
    check_arguments(pipeline, generation.arguments)
    check_inputs(pipeline, generation.inputs)
    return Generator(pipeline, generation)(images.start, images.stop, lambda done: report(done, len(images)))
