"""A worker's jobs for a study: measure a configuration, or generate images into a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_via
from qua2sedimo.images.own import CallablePipeline
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.replay import replay
from qua2sedimo.measuring.run import Crew, Workers
from qua2sedimo.measuring.workers import Work
from qua2sedimo.options import Configuration
from qua2sedimo.runtime import set_activation_bits
from qua2sedimo.study.building import built_by, refuse_given_pipeline
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.machine import peak_memory
from qua2sedimo.system.progress import Progress, silent
from qua2sedimo.system.versions import versions

_MEASURERS = 16  # ranges of images whose full-precision images stay in memory


@contextmanager
def crew(study: Workspace, workers: Workers = Workers(), progress: Progress = silent) -> Iterator[Crew]:
    """The crew that runs jobs within the context: this process, or Ray workers that open the study by its folder.

    An active crew is reused, so that a stage that calls others starts its workers once.
    """
    if study.crew is not None:
        yield study.crew
        return
    if not workers.here:
        refuse_given_pipeline(study)
        with built_by(study, workers, progress):
            study.build_bank(progress)  # graph and bank must exist before a worker opens them
    opener, folder = f"{__name__}:{open_worker.__name__}", str(study.folder.resolve())
    with Crew(workers, lambda: work_of(study), opener, [folder], progress, not study.batch_is_known) as study.crew:
        try:
            yield study.crew
        finally:
            study.crew = None
            if workers.here and "switch" in vars(study):
                study.switch.restore()


def check_replayable(study: Workspace) -> None:
    """Raise :class:`Qua2SeDiMoError` if a new process cannot make images with an export of this study."""
    if isinstance(study.pipeline, CallablePipeline):
        raise Qua2SeDiMoError(
            "a new process cannot make images with a pipeline that is your own code",
            "Compare it in Python: load the export with qua2sedimo.load_packed.",
        )


def open_worker(folder: str) -> Work:
    """The work of a worker that opens a study by its folder."""
    study = Workspace(folder)
    if not (study.folder / "bank" / "index.json").exists():
        raise Qua2SeDiMoError(
            f"{study.folder} has no bank here", "The study folder must be on storage that all machines share."
        )
    return work_of(study)


def work_of(study: Workspace) -> Work:
    """A job as JSON → its result as JSON; ``do`` is ``measure``, ``reference`` or ``paint``."""

    @lru_cache(_MEASURERS)
    def measurer(start: int, stop: int) -> Measurer:
        return study.measurer(range(start, stop))

    def measure(start: int, stop: int, configuration: str) -> dict[str, Any]:
        measurement = measurer(start, stop)(Configuration.from_json(configuration))
        return {**asdict(measurement), "peak_memory": peak_memory(), "versions": versions()}

    def reference(start: int, stop: int) -> None:
        measurer(start, stop).prepare()

    def paint(start: int, stop: int, to: str, **how: Any) -> float:
        images, seconds = _painted(study, range(start, stop), **how)
        content = {"images": np.ascontiguousarray(images)}
        write_via(Path(to), lambda temporary: save_file(content, temporary))
        return seconds

    known: dict[str, Callable[..., Any]] = {"measure": measure, "reference": reference, "paint": paint}

    def work(content: str) -> str:
        job = json.loads(content)
        return json.dumps(known[job.pop("do")](**job))

    return work


def _painted(
    study: Workspace, images: range, configuration: str | None = None, act_bits: int | None = None,
    packed: str | None = None, choice: str | None = None,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Images of a configuration, optionally with rounded activations, or of the packed folder, by a new process; and
    the seconds that making them took.

    ``choice``: the configuration is that of a polished choice, and the weights are the choice's.
    """
    if packed is not None:
        check_replayable(study)
        place = study.folder / "comparison"
        loading = replace(study.settings.loading, dtype=study.dtype, variant=None, revision=None, config=None)
        return replay(Path(packed), study.generator.generation, images, place, loading)
    applied = Configuration.from_json(configuration or "{}")
    study.switch.apply(applied)
    if choice is not None:
        kept = Choice.load(study.folder / "choices" / f"{choice}.json")
        for unit, value in study.polished_values(kept).items():
            study.switch.write(unit, value)
    with activations_at(study, applied, act_bits) if act_bits is not None else nullcontext():
        began = time.perf_counter()
        return study.generator(images.start, images.stop), time.perf_counter() - began


@contextmanager
def activations_at(study: Workspace, configuration: Configuration, bits: int) -> Iterator[None]:
    """Within the context, the inputs of attention and of the layers of ``configuration`` are rounded to ``bits``.

    Equals the exported model with such activations. Raises :class:`Qua2SeDiMoError` if the denoiser does not allow it.
    """
    units = (study.graph.layers[unit] for unit in configuration)
    layers = dict.fromkeys(name for unit in units for name in (unit.module, *unit.copies))
    set_activation_bits(study.denoiser, bits, layers)
    try:
        yield
    finally:
        set_activation_bits(study.denoiser, None)
