"""Statistics and bank made by workers: observing by images and sources, quantizing by layers, weighing by calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from qua2sedimo.bank import Bank, quantize_layer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.run import Crew, Workers
from qua2sedimo.measuring.workers import Work
from qua2sedimo.options import Option
from qua2sedimo.statistics import Observation, Source
from qua2sedimo.statistics.observing import record_some, sum_gradients, sum_moments
from qua2sedimo.study.parts import DenoiserPart
from qua2sedimo.study.weighing import weigh_some
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent


@contextmanager
def built_by(study: Workspace, workers: Workers, progress: Progress = silent) -> Iterator[None]:
    """Within, statistics and bank of the study are made by these workers, which open it by its folder.

    They are the same as if this process made them. Workers are started with the first job.
    """
    if workers.here or study.elsewhere is not None:
        yield
        return
    refuse_given_pipeline(study)
    study.graph  # noqa: B018 - traced once, before a worker opens the study
    opener, folder = f"{__name__}:{open_builder.__name__}", str(study.folder.resolve())
    with Crew(workers, lambda: building_work(study), opener, [folder], progress) as study.elsewhere:
        try:
            yield
        finally:
            study.elsewhere = None


def refuse_given_pipeline(study: Workspace) -> None:
    """Raise :class:`Qua2SeDiMoError` if workers cannot load the study's pipeline."""
    if study.pipeline_given:
        raise Qua2SeDiMoError(
            "workers load the pipeline by its name, but that of this study was passed in memory",
            "Save the pipeline to a folder and create a study of that, or leave out workers.",
        )


def open_builder(folder: str) -> Work:
    """The work of a worker that opens a study by its folder."""
    study = Workspace(folder)
    if not (study.folder / "graph.json").exists():
        raise Qua2SeDiMoError(
            f"{study.folder} has no graph here", "The study folder must be on storage that all machines share."
        )
    return building_work(study)


def building_work(study: Workspace) -> Work:
    """A job as JSON → its result as JSON; what a job makes is a file in the study's folder, or its result."""

    def part(component: str) -> DenoiserPart:
        return next(part for part in study.parts if part.component == component)

    def observing(component: str) -> tuple[Any, Observation]:
        return study.statistics_folder / component, study.observation(part(component))

    @cache
    def bank() -> Bank:
        return Bank(study.folder / "bank", study.candidates, study.identity)  # all layers, but not weighed

    def record(component: str, start: int, stop: int) -> None:
        record_some(*observing(component), range(start, stop))

    def moments(component: str, sources: Sequence[tuple[int, list[str], int, list[str]]]) -> None:
        of_places = {place: Source(tuple(units), n, tuple(sees)) for place, units, n, sees in sources}
        sum_moments(*observing(component), of_places)

    def gradients(component: str, number: int) -> bool:
        return sum_gradients(*observing(component), number)

    def quantize(layer: str, options: Sequence[str]) -> None:
        tried = [Option.parse(option) for option in options]
        folder, space = study.folder / "bank", study.candidates
        quantize_layer(folder, space, layer, tried, study.weight, study.observed, study.prunes)

    def weigh(component: str, start: int, stop: int) -> dict[str, list[list[float]]] | None:
        study.full_precision_generator()
        with study.without_offload():
            found = weigh_some(bank(), part(component), study.statistics, study.live_weight, range(start, stop))
        return None if found is None else {layer: changes.tolist() for layer, changes in found.items()}

    known: dict[str, Callable[..., Any]] = {
        "record": record, "moments": moments, "gradients": gradients, "quantize": quantize, "weigh": weigh,
    }  # fmt: skip

    def work(content: str) -> str:
        job = json.loads(content)
        return json.dumps(known[job.pop("do")](**job))

    return work
