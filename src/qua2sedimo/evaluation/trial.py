"""A short trial of measuring: where the seconds of a configuration go, beside the bare pipeline."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from qua2sedimo.evaluation.generate import Generator, without_safety_checker
from qua2sedimo.evaluation.measure import Measurer
from qua2sedimo.evaluation.switch import Switch
from qua2sedimo.options import Configuration, Option


@dataclass(frozen=True)
class Trial:
    """Median seconds of one configuration, of its stages, and of the bare pipeline calls for the same images.

    ``overhead``: median over configurations of how much longer each took than the bare calls just before it.
    """

    bare: float
    total: float
    switch: float
    generate: float
    overhead: float
    images: int

    @property
    def metrics(self) -> float:
        """What is left: comparing the images."""
        return max(0.0, self.total - self.switch - self.generate)


class TimedGenerator(Generator):
    """A generator that adds up its seconds."""

    seconds = 0.0

    def __call__(self, start: int, stop: int, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        began = time.perf_counter()
        images = super().__call__(start, stop, progress)
        self.seconds += time.perf_counter() - began
        return images


class TimedSwitch(Switch):
    """A switch that adds up its seconds."""

    seconds = 0.0

    def apply(self, configuration: Mapping[str, Option]) -> int:
        began = time.perf_counter()
        changed = super().apply(configuration)
        self.seconds += time.perf_counter() - began
        return changed


def try_out(
    measurer: Measurer,
    generator: TimedGenerator,
    switch: TimedSwitch,
    configurations: Sequence[Configuration],
    progress: Callable[[int], object] = lambda done: None,
) -> Trial:
    """Measure the configurations, each after bare calls for the same images; the first warms up and is not counted."""
    rows = []
    _ = measurer.reference
    for i, configuration in enumerate(configurations):
        bare = bare_seconds(generator, measurer.images)
        switch.seconds = generator.seconds = 0.0
        began = time.perf_counter()
        measurer(configuration)
        rows.append((bare, time.perf_counter() - began, switch.seconds, generator.seconds))
        progress(i + 1)
    counted = rows[1:]
    medians = [statistics.median(column) for column in zip(*counted)]
    overhead = statistics.median(total / bare - 1 for bare, total, _, _ in counted)
    return Trial(medians[0], medians[1], medians[2], medians[3], overhead, len(measurer.images))


@torch.inference_mode()
def bare_seconds(generator: Generator, images: range) -> float:
    """Seconds of calling the pipeline for these images, and nothing else."""
    batch = generator.generation.batch
    began = time.perf_counter()
    with without_safety_checker(generator.pipeline):
        for low in range(images.start, images.stop, batch):
            generator.pipeline(**generator.call_arguments(range(low, min(low + batch, images.stop))))
    return time.perf_counter() - began


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_bytes() -> int:
    """The most memory this process has held: of the GPU if torch uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
