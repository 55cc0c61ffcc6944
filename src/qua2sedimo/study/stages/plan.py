"""Planning: time, memory and disk space of measuring N configurations, from a short trial."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from qua2sedimo.bank import Bank, Observed, bank_bytes
from qua2sedimo.formats.temporary import scratch_folder
from qua2sedimo.images.generate import steps_of
from qua2sedimo.images.ledger import LEARNING
from qua2sedimo.measuring.trial import (
    TimedGenerator,
    Trial,
    bare_seconds,
    peak_bytes,
    torch_threads,
    try_out,
)
from qua2sedimo.options import Configuration, SearchSpace, within_reach
from qua2sedimo.quantizers import Moment
from qua2sedimo.statistics.sources import likely_sources
from qua2sedimo.statistics.store import moment_bytes
from qua2sedimo.study.weighing import weighed_calls
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

WORKERS = (1, 2, 3, 4)
_TRIED_LAYERS = 4  # quantized for the trial if there is no bank yet
_SLOW = 10.0  # seconds of an image from which on as little as possible is tried
_FEWEST_IMAGES = 2  # with which every metric has a value
_BYTES_A_VALUE = 20  # of a per-image value in JSON
_FORWARD_AND_BACK = 3  # seconds of both, by those of a forward pass alone


@dataclass(frozen=True)
class Plan:
    """The cost of ``configurations`` measurements, ``measured`` of which exist already.

    ``load``: seconds of loading the pipeline; ``observe``: seconds of observing what layers see, 0 if that is done or
    not needed; ``quantize``: seconds of building the bank, 0 if it exists; ``workers``:
    number of workers → seconds of the remaining measurements; ``memory``: bytes of one process; ``kept_weights``: bytes
    of copied original weights; ``statistics``, ``bank``: bytes of these on disk; ``disk``: with those of records.
    """

    model: str
    configurations: int
    measured: int
    images: int
    batch: int
    trial: Trial
    load: float
    observe: float
    quantize: float
    workers: dict[int, float]
    memory: int
    kept_weights: int
    statistics: int
    bank: int
    disk: int
    device: str
    cores: int

    @property
    def left(self) -> int:
        return max(0, self.configurations - self.measured)

    def seconds_with(self, images: int) -> float:
        """Seconds of the remaining measurements on one worker, with another number of images per configuration."""
        share = images / self.images
        return self.left * (self.trial.switch + share * (self.trial.total - self.trial.switch))

    def document(self) -> dict[str, Any]:
        """The plan as plain data."""
        content = asdict(self)
        content["trial"]["metrics"] = self.trial.metrics
        return {**content, "left": self.left, "images_in_all": self.images * (self.left + 1)}


def plan(study: Workspace, configurations: int, repeats: int = 2, progress: Progress = silent) -> Plan:
    """Time ``repeats`` configurations and the bare pipeline, and estimate the cost of ``configurations``.

    Nothing is recorded. If there is no bank yet, a few layers are quantized for the trial, and the seconds of
    quantizing and switching are extrapolated by the number of weights.
    """
    began = time.perf_counter()
    device = str(getattr(study.pipeline, "device", "cpu"))
    load = time.perf_counter() - began
    sampler = study.sampler_of(study.reachable)
    sampler.require(configurations)
    if sampler.name == "near":  # which needs the bank, and takes as long to measure
        sampler = replace(sampler, name="spread")
    measured = len({r.number for r in study.records.all("sample")}) if study.is_observed else 0
    drawn = [sampler(number) for number in range(min(repeats + 1, sampler.count or repeats + 1))]
    drawn += [drawn[-1]] * (repeats + 1 - len(drawn))
    with _bank_for_trial(study) as (bank, share, quantize):
        generator = TimedGenerator(study.pipeline, study.generator.generation, study.denoisers.values())
        switch = study.switch_of(bank)
        images = LEARNING.images(study.settings.images)
        progress(0, len(drawn), "trying configurations")
        slow = bare_seconds(generator, images[:1]) > _SLOW
        if slow:  # one of few images tells enough, and a first one more takes minutes
            images, drawn = images[:_FEWEST_IMAGES], drawn[-1:]
        measurer = study.measurer(images, generator, switch)
        tried = [Configuration((n, c[n]) for n in bank.space.layers if n in c) for c in drawn]
        try:
            found = try_out(
                measurer, generator, switch, tried, lambda done: progress(done, len(tried), "trying configurations"),
                warm_up=not slow,
            )  # fmt: skip
        finally:
            switch.restore()
    trial = found.of_all(study.settings.images, share)
    left = max(0, configurations - measured)
    observed, bank_size = _statistics_bytes(study), _bank_bytes(study)
    return Plan(
        model=study.settings.model, configurations=configurations, measured=measured, images=study.settings.images,
        batch=study.batch, trial=trial, load=load, observe=_observing(study, trial), quantize=quantize,
        workers={n: left * trial.total / gain for n, gain in _gains(study, generator, device, slow).items()},
        memory=peak_bytes(), kept_weights=switch.originals.copied_bytes, statistics=observed, bank=bank_size,
        disk=observed + bank_size + configurations * _record_bytes(study), device=device, cores=_cores(),
    )  # fmt: skip


@contextmanager
def _bank_for_trial(study: Workspace) -> Iterator[tuple[Bank, float, float]]:
    """(bank, its share of all weights, estimated seconds of building the whole bank)."""
    if study.is_observed and Bank.is_finished(study.folder / "bank", study.candidates):
        yield study.bank, 1.0, 0.0
        return
    space = study.candidates
    mean = space.weights / len(space.layers)
    # With layers of mean size, both cost per layer and cost per weight are extrapolated correctly.
    typical = sorted(space.layers, key=lambda name: abs(study.graph.layers[name].weights - mean))
    picked = set(typical[:_TRIED_LAYERS])
    part = SearchSpace(
        {name: space.shapes[name] for name in space.layers if name in picked},
        {name: space.options[name] for name in space.layers if name in picked},
    )
    share = part.weights / space.weights
    with scratch_folder() as folder:
        began = time.perf_counter()
        bank = Bank.build(
            folder, part, "trial", study.weight, workers=study.quantizing_threads,
            observed=lambda layer: _as_observed(study, layer),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        yield bank, share, seconds / share * _weighted_widths(_stored(study, part)) / _weighted_widths(part)


def _stored(study: Workspace, space: SearchSpace) -> SearchSpace:
    """The options of these layers that a bank will hold: those that any budget may need, as far as that is known."""
    return within_reach(space, {}) if study.prunes else space


def _weighted_widths(space: SearchSpace) -> int:
    """Weights to quantize, each as often as it has options."""
    return sum(math.prod(space.shapes[layer]) * len(options) for layer, options in space.options.items())


def _observing(study: Workspace, trial: Trial) -> float:
    """Estimated seconds of observing: images are generated, then half of their calls are run for moments, a sixth
    forwards and backwards, and some of them again to weigh options."""
    if study.is_observed:
        return 0.0
    generation = study.observed_generation
    usual = steps_of(study.pipeline, study.settings.arguments)
    steps = steps_of(study.pipeline, generation.arguments)
    share = steps / usual if steps and usual else 1.0
    calls = max(1.0, study.observed_images * (steps or 1) / generation.batch)  # of the denoiser, one a step
    weighed = min(weighed_calls(study.candidates.weights), calls / 2) / calls
    passes = 1 + 1 / 2 + _FORWARD_AND_BACK * (1 / 6 + weighed)
    return passes * share * trial.generate * study.observed_images / study.settings.images


def _as_observed(study: Workspace, layer: str) -> Observed:
    """Statistics of a layer or, where there are none yet, some of the same size: rounding takes as long under any."""
    if study.is_observed:
        return study.observed(layer)
    shape = study.graph.layers[layer].shape
    return Observed(Moment.identity(math.prod(shape[1:])))


def _gains(study: Workspace, generator: TimedGenerator, device: str, slow: bool) -> dict[int, float]:
    """Number of workers → their throughput relative to this process.

    On CPUs they share the cores: a worker with t threads takes a + b/t seconds per batch (Amdahl's law), with a and b
    measured on one and on all of torch's threads; where an image is ``slow``, all of it is taken to run in parallel,
    so that more workers gain nothing. More workers than cores or GPUs gain nothing. Memory contention is ignored, so
    this is an upper bound.
    """
    if not device.startswith("cpu"):
        devices = max(1, torch.cuda.device_count())
        return {n: float(min(n, devices)) for n in WORKERS}
    if slow:
        return dict.fromkeys(WORKERS, 1.0)
    threads = torch.get_num_threads()
    one_batch = LEARNING.images(min(study.batch, study.settings.images))
    every = bare_seconds(generator, one_batch)
    with torch_threads(1):
        alone = every if threads == 1 else bare_seconds(generator, one_batch)
    return {n: gain_of_workers(n, max(_cores(), threads), threads, alone, every) for n in WORKERS}


def gain_of_workers(workers: int, cores: int, threads: int, alone: float, every: float) -> float:
    """Throughput relative to one worker on ``threads`` threads; ``alone``, ``every``: seconds on one thread, on all."""
    parallel = max(0.0, (alone - every) / (1 - 1 / threads)) if threads > 1 else 0.0
    busy = min(workers, cores)
    own = min(threads, max(1, cores // busy))
    return busy * every / (max(alone, every) - parallel + parallel / own)


def _cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _statistics_bytes(study: Workspace) -> int:
    """About the bytes of the moments of all layers' inputs."""
    if not study.settings.compensates:
        return 0
    sources = likely_sources(study.graph, study.candidates.layers)
    return sum(moment_bytes(source.blocks) for source in sources)


def _bank_bytes(study: Workspace) -> int:
    """Bytes of the bank, exact except for headers; of one that is still to be made, and will leave out what no budget
    needs, what it has where nothing is known of needs."""
    stored = study.reachable
    if stored is study.candidates:
        stored = _stored(study, stored)
    return bank_bytes(stored, study.prunes, stored.layers)


def _record_bytes(study: Workspace) -> int:
    names = {layer: str(options[0]) for layer, options in study.reachable.options.items()}
    metrics = len({study.settings.objective, *study.settings.metrics})
    return len(json.dumps(names)) + metrics * study.settings.images * _BYTES_A_VALUE + 500
