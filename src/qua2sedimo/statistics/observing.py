"""Observing a pipeline: images are generated in full precision, and what each layer sees and does is kept."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from qua2sedimo.denoisers import Graph, WeightLayer
from qua2sedimo.denoisers.components import LATENTS, is_decoder, is_encoder
from qua2sedimo.denoisers.pipelines import denoisers_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import file_digest, read_json, write_json
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.sealed import load_tensors, save_tensors
from qua2sedimo.formats.temporary import clear_leftovers
from qua2sedimo.images.generate import Generator
from qua2sedimo.statistics.calls import RecordedCalls
from qua2sedimo.statistics.gradients import (
    add_gradients,
    checkpointed,
    of_each_call,
    squared_gradients,
    without_backward,
)
from qua2sedimo.statistics.moments import observe_moments
from qua2sedimo.statistics.recording import (
    batch_mark,
    missing_batches,
    prepare_recording,
    record_calls,
    record_texts,
)
from qua2sedimo.statistics.sources import Source, find_sources, passes
from qua2sedimo.statistics.store import (
    INDEX,
    Statistics,
    StatisticsIndex,
    add_moment,
    gradients_file,
    known_checksums,
    moment_file,
    write_gradients,
    write_moment,
)
from qua2sedimo.system.elsewhere import Elsewhere, written_elsewhere
from qua2sedimo.system.memory import return_memory
from qua2sedimo.system.progress import Progress, silent

#: Of the recorded calls, one in this many has a backward pass.
_EVERY = 3
#: Folders: calls with other prompts, for moments; and what single calls say of gradients, while others work.
_TEXTS, _PARTS = "texts", "gradients"


@dataclass(frozen=True)
class Observation:
    """What is observed: the ``units`` of a denoiser while ``generator`` makes ``images``, with at most ``memory`` bytes
    for moments at a time; layers that see only the text, also with ``texts``. ``key`` identifies all that the result
    depends on. ``component`` is the denoiser's name where there are several."""

    generator: Generator
    denoiser: nn.Module
    graph: Graph
    units: Sequence[str]
    images: range
    memory: int
    key: str
    texts: Sequence[str] = ()
    component: str = ""

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


def observe(
    folder: Path, what: Observation, progress: Progress = silent, elsewhere: Elsewhere | None = None
) -> Statistics:
    """Statistics in ``folder``, observed now or kept.

    Calls of the denoiser are recorded, then run again: for the moments of as many sources at a time as fit into memory,
    and a third of them with a backward pass. Interrupted, it continues with the first missing batch or group. If
    another process observes for the same folder, this one waits for it. ``elsewhere`` does the work if it is given
    (:func:`record_some`, :func:`sum_moments`, :func:`sum_gradients`), for the same statistics. Raises
    :class:`Qua2SeDiMoError` if the folder was begun for another key.
    """
    with alone(folder, lambda: progress(0, 1, "waiting for another process that observes")):
        if not Statistics.is_finished(folder):
            _observe(folder, what, progress, elsewhere)
            return_memory()
    return Statistics(folder, what.key, what.graph.layers)


def _observe(folder: Path, what: Observation, progress: Progress, elsewhere: Elsewhere | None) -> None:
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
    calls = _recorded(folder, what, progress, elsewhere)
    sources, uncalled = find_sources(what.denoiser, what.graph, what.units, calls[0])
    if what.texts and any(not source.sees_sample(what.sample) for source in sources):
        generation = replace(what.generator.generation, inputs=what.texts)
        if calls.one_by_one:  # what a pipeline passes to the denoiser for several may not fit together
            generation = replace(generation, batch=1)
        images = range(what.images.start, what.images.start + len(what.texts))
        record_texts(Generator(what.generator.pipeline, generation), what.denoiser, images, folder / _TEXTS)
    rows = _moments(folder, what, sources, calls, progress, elsewhere)
    _gradients(folder, what, calls, progress, elsewhere)
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
    for used in (_TEXTS, _PARTS):  # nothing else reads them
        shutil.rmtree(folder / used, ignore_errors=True)


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


def _recorded(folder: Path, what: Observation, progress: Progress, elsewhere: Elsewhere | None) -> RecordedCalls:
    """The calls of all images, recorded now or kept."""
    total, name = len(what.images), "observing: images"
    if elsewhere is None:
        return record_some(folder, what, what.images, lambda done: progress(done, total, name))
    prepare_recording(what.generator, what.denoiser, what.images, folder / "calls")
    missing = missing_batches(what.images, what.generator.batch, folder / "calls")
    jobs = [
        {"do": "record", "component": what.component, "start": images.start, "stop": images.stop} for images in missing
    ]
    done = total - sum(map(len, missing))
    progress(done, total, name)
    for place, _ in elsewhere.each(jobs, name):
        done += len(missing[place])
        progress(done, total, name)
    for images in missing_batches(what.images, what.generator.batch, folder / "calls"):
        written_elsewhere(batch_mark(folder / "calls", images))
    return RecordedCalls(folder / "calls")


def record_some(
    folder: Path, what: Observation, images: range, progress: Callable[[int], object] = lambda done: None
) -> RecordedCalls:
    """Record the calls of some batches of the images."""
    with _affordable_gradients(what):
        return record_calls(what.generator, what.denoiser, what.images, folder / "calls", progress, images)


def _moments(
    folder: Path, what: Observation, sources: Sequence[Source], calls: RecordedCalls, progress: Progress,
    elsewhere: Elsewhere | None,
) -> list[int]:  # fmt: skip
    """Write the moments that are missing; returns the observed positions of every source."""
    known, files = known_checksums(folder), [moment_file(folder, i) for i in range(len(sources))]
    counts = {i: n for i, file in enumerate(files) if _is_known(file, known) and (n := _rows(file)) is not None}
    missing = {i: source for i, source in enumerate(sources) if i not in counts}
    name, at = "observing: layer inputs", 0
    if elsewhere is None:
        groups = [dict(group) for group in passes(list(missing.items()), what.memory)]
        for number, group in enumerate(groups):
            report = _after(progress, number * len(calls), len(groups) * len(calls), name)
            sum_moments(folder, what, group, report)
            for place in group:
                add_moment(files[place])
    else:
        shares = _shared_out(missing, elsewhere.width)
        groups = [dict(group) for share in shares for group in passes(share, what.memory)]
        jobs = [
            {"do": "moments", "component": what.component,
             "sources": [[place, source.units, source.inputs, source.sees] for place, source in group.items()]}
            for group in groups
        ]  # fmt: skip
        for job, _ in elsewhere.each(jobs, name):
            for place in groups[job]:
                add_moment(written_elsewhere(files[place]))
            at += len(groups[job])
            progress(at, len(missing), name)
    return [counts[i] if i in counts else _rows_of(file) for i, file in enumerate(files)]


def _shared_out(sources: Mapping[int, Source], width: int) -> list[list[tuple[int, Source]]]:
    """At most ``width`` shares of about the same work: as many products for each position."""
    shares: list[list[tuple[int, Source]]] = [[] for _ in range(min(width, len(sources)))]
    work = [0] * len(shares)
    for place, source in sorted(sources.items(), key=lambda entry: -entry[1].nbytes):
        least = work.index(min(work))
        shares[least].append((place, source))
        work[least] += source.nbytes
    return [sorted(share, key=lambda entry: entry[0]) for share in shares]


def sum_moments(
    folder: Path, what: Observation, sources: Mapping[int, Source],
    progress: Callable[[int], object] = lambda done: None,
) -> None:  # fmt: skip
    """Write the moments of some sources, by their place among all, from all recorded calls."""
    calls, texts = RecordedCalls(folder / "calls"), RecordedCalls(folder / _TEXTS)
    seed, every = what.generator.generation.seed, list(sources.values())
    found = observe_moments(
        what.denoiser, what.graph, every, calls, what.sample, what.steps, seed, texts, progress
    )  # fmt: skip
    for place, (moment, count) in zip(sources, found):
        write_moment(moment_file(folder, place), moment, count)


def _gradients(
    folder: Path, what: Observation, calls: RecordedCalls, progress: Progress, elsewhere: Elsewhere | None
) -> None:
    if _is_known(gradients_file(folder), known_checksums(folder)):
        return
    some = _differentiated(calls)
    report = _after(progress, 0, len(some), "observing: gradients")
    if elsewhere is None:
        found = squared_gradients(what.denoiser, _layers(what), some, report)
    else:
        found = _gradients_elsewhere(folder, what, len(some), report, elsewhere)
    if found is not None:
        write_gradients(folder, found)


def _gradients_elsewhere(
    folder: Path, what: Observation, count: int, progress: Callable[[int], object], elsewhere: Elsewhere
) -> dict[str, torch.Tensor] | None:
    """As :func:`squared_gradients`: those of each call, by whoever, summed up in the order of the calls."""
    files = [folder / _PARTS / f"{number:04d}.safetensors" for number in range(count)]
    missing = [number for number, file in enumerate(files) if _part(file) is None]
    jobs = [{"do": "gradients", "component": what.component, "number": number} for number in missing]
    for done, (job, possible) in enumerate(elsewhere.each(jobs, "observing: gradients"), count - len(missing) + 1):
        if not possible:
            return None
        written_elsewhere(files[missing[job]])
        progress(done)
    totals: dict[str, torch.Tensor] = {}
    for file in files:
        found = _part(file)
        if found is None:
            raise Qua2SeDiMoError(f"{file} is missing or damaged", "Run the same command again.")
        add_gradients(totals, found)
    return {name: total / count for name, total in totals.items()} or None


def sum_gradients(folder: Path, what: Observation, number: int) -> bool:
    """Write the squared gradients of one of the calls that have a backward pass; False if it has none here."""
    call = _differentiated(RecordedCalls(folder / "calls"))[number]
    try:
        (found,) = of_each_call(what.denoiser, _layers(what), [call])
    except (RuntimeError, MemoryError) as error:
        if not without_backward(error):
            raise
        return False
    path = folder / _PARTS / f"{number:04d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_tensors(path, {name: value.contiguous() for name, value in found.items()}, {})
    return True


def _part(file: Path) -> dict[str, torch.Tensor] | None:
    """What :func:`sum_gradients` wrote; None if it did not, or the file is damaged."""
    try:
        return dict(load_tensors(file, "")[0]) if file.exists() else None
    except Qua2SeDiMoError:
        return None


def _differentiated(calls: RecordedCalls) -> RecordedCalls:
    """The calls that have a backward pass."""
    return calls.some(-(-len(calls) // _EVERY))


def _layers(what: Observation) -> dict[str, WeightLayer]:
    return {unit: what.graph.layers[unit] for unit in what.units}


def _after(progress: Progress, before: int, total: int, what: str) -> Callable[[int], object]:
    return lambda done: progress(before + done, total, what)


def _is_known(path: Path, known: Mapping[str, str]) -> bool:
    """Whether a file is there and as it was written."""
    return path.exists() and file_digest(path) == known.get(path.name)


def _rows_of(path: Path) -> int:
    """Observed positions of a moment that was just written."""
    found = _rows(path)
    if found is None:
        raise Qua2SeDiMoError(f"{path} is damaged", "Run the same command again: it is made anew.")
    return found


def _rows(path: Path) -> int | None:
    """Observed positions of a moment that was written; None if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as handle:
            return int((handle.metadata() or {})["rows"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
