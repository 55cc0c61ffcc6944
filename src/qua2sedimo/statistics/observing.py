"""Observing a pipeline: images are generated in full precision, and what each layer sees and does is kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from qua2sedimo.denoisers import Graph
from qua2sedimo.denoisers.components import LATENTS, is_decoder, is_encoder
from qua2sedimo.denoisers.pipelines import denoisers_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import file_digest, read_json, write_json
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.temporary import clear_leftovers
from qua2sedimo.images.generate import Generator
from qua2sedimo.statistics.calls import RecordedCall, RecordedCalls
from qua2sedimo.statistics.gradients import checkpointed, squared_gradients
from qua2sedimo.statistics.moments import observe_moments
from qua2sedimo.statistics.recording import record_calls, record_texts
from qua2sedimo.statistics.sources import Source, find_sources, passes
from qua2sedimo.statistics.store import (
    INDEX,
    Statistics,
    StatisticsIndex,
    gradients_file,
    known_checksums,
    moment_file,
    write_gradients,
    write_moment,
)
from qua2sedimo.system.memory import return_memory
from qua2sedimo.system.progress import Progress, silent

#: Of the recorded calls, one in this many has a backward pass.
_EVERY = 3


@dataclass(frozen=True)
class Observation:
    """What is observed: the ``units`` of a denoiser while ``generator`` makes ``images``, with at most ``memory`` bytes
    for moments at a time; layers that see only the text, also with ``texts``. ``key`` identifies all that the result
    depends on."""

    generator: Generator
    denoiser: nn.Module
    graph: Graph
    units: Sequence[str]
    images: range
    memory: int
    key: str
    texts: Sequence[str] = ()

    @property
    def sample(self) -> str:
        """The name of the noisy sample among the denoiser's arguments, "" for a text encoder."""
        return sample_name(self.denoiser)

    @property
    def steps(self) -> int | None:
        """Number of time steps of the scheduler's whole schedule, if it has one."""
        config = getattr(getattr(self.generator.pipeline, "scheduler", None), "config", {})
        found = config.get("num_train_timesteps") if hasattr(config, "get") else None
        return int(found) if isinstance(found, int) and found > 1 else None


def observe(folder: Path, what: Observation, progress: Progress = silent) -> Statistics:
    """Statistics in ``folder``, observed now or kept.

    Calls of the denoiser are recorded, then run again: for the moments of as many sources at a time as fit into memory,
    and a third of them with a backward pass. Interrupted, it continues with the first missing batch or group. If
    another process observes for the same folder, this one waits for it. Raises :class:`Qua2SeDiMoError` if the folder
    was begun for another key.
    """
    with alone(folder, lambda: progress(0, 1, "waiting for another process that observes")):
        if not Statistics.is_finished(folder):
            _observe(folder, what, progress)
            return_memory()
    return Statistics(folder, what.key, what.graph.layers)


def _observe(folder: Path, what: Observation, progress: Progress) -> None:
    """Write statistics, or those that are missing."""
    label = folder / "key.json"
    if label.exists() and read_json(label) != what.key:
        raise Qua2SeDiMoError(
            f"{folder} was begun with other weights, prompts, arguments or settings",
            "Move the folder away; it will be made again.",
        )
    write_json(label, what.key)
    clear_leftovers(folder)
    for leftover in folder.glob(".*.tmp"):  # of an earlier version
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    with _affordable_gradients(what):
        calls = record_calls(
            what.generator, what.denoiser, what.images, folder / "calls",
            lambda done: progress(done, len(what.images), "observing: images"),
        )  # fmt: skip
    sources, uncalled = find_sources(what.denoiser, what.graph, what.units, calls[0])
    texts: Sequence[RecordedCall] = ()
    if what.texts and any(not source.sees_sample(what.sample) for source in sources):
        generation = replace(what.generator.generation, inputs=what.texts)
        if calls.one_by_one:  # what a pipeline passes to the denoiser for several may not fit together
            generation = replace(generation, batch=1)
        images = range(what.images.start, what.images.start + len(what.texts))
        texts = record_texts(Generator(what.generator.pipeline, generation), what.denoiser, images, folder / "texts")
    rows = _moments(folder, what, sources, calls, texts, progress)
    _gradients(folder, what, calls, progress)
    index = StatisticsIndex(
        key=what.key,
        images=len(what.images),
        sources=[
            (s.units, s.inputs, s.sees, count, file_digest(moment_file(folder, i)))
            for i, (s, count) in enumerate(zip(sources, rows))
        ],
        uncalled=uncalled,
        gradients=file_digest(gradients_file(folder)),
    )
    index.save(folder / INDEX)


@contextmanager
def _affordable_gradients(what: Observation) -> Iterator[None]:
    """Within, large denoisers that gradients of a text encoder pass through keep no activations for them."""
    pipeline = what.generator.pipeline
    with ExitStack() as stack:
        for name in denoisers_of(pipeline) if is_encoder(what.denoiser) else ():
            stack.enter_context(checkpointed(getattr(pipeline, name)))
        yield


def sample_name(denoiser: nn.Module) -> str:
    """The name of the denoiser's first argument, the noisy sample; of an autoencoder, that of the latents; "" for a
    text encoder, which sees only the text."""
    if is_encoder(denoiser):
        return ""
    if is_decoder(denoiser):
        return LATENTS
    return next(name for name in inspect.signature(type(denoiser).forward).parameters if name != "self")


def _moments(
    folder: Path, what: Observation, sources: Sequence[Source], calls: RecordedCalls, texts: Sequence[RecordedCall],
    progress: Progress,
) -> list[int]:  # fmt: skip
    """Write the moments that are missing; returns the observed positions of every source."""
    known, files = known_checksums(folder), [moment_file(folder, i) for i in range(len(sources))]
    counts = {i: n for i, file in enumerate(files) if _is_known(file, known) and (n := _rows(file)) is not None}
    missing = [i for i in range(len(sources)) if i not in counts]
    groups = passes([sources[i] for i in missing], what.memory)
    at = 0
    for number, group in enumerate(groups):
        report = _after(progress, number * len(calls), len(groups) * len(calls), "observing: layer inputs")
        seed = what.generator.generation.seed
        found = observe_moments(what.denoiser, what.graph, group, calls, what.sample, what.steps, seed, texts, report)
        for place, (moment, count) in zip(missing[at : at + len(group)], found):
            write_moment(moment_file(folder, place), moment, count)
            counts[place] = count
        at += len(group)
    return [counts[i] for i in range(len(sources))]


def _gradients(folder: Path, what: Observation, calls: RecordedCalls, progress: Progress) -> None:
    if _is_known(gradients_file(folder), known_checksums(folder)):
        return
    some = calls.some(-(-len(calls) // _EVERY))
    layers = {unit: what.graph.layers[unit] for unit in what.units}
    report = _after(progress, 0, len(some), "observing: gradients")
    found = squared_gradients(what.denoiser, layers, some, report)
    if found is not None:
        write_gradients(folder, found)


def _after(progress: Progress, before: int, total: int, what: str) -> Callable[[int], object]:
    return lambda done: progress(before + done, total, what)


def _is_known(path: Path, known: Mapping[str, str]) -> bool:
    """Whether a file is there and as it was written."""
    return path.exists() and file_digest(path) == known.get(path.name)


def _rows(path: Path) -> int | None:
    """Observed positions of a moment that was written; None if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as handle:
            return int((handle.metadata() or {})["rows"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
