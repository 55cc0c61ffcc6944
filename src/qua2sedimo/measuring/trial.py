"""A short trial of measuring: seconds of each stage of a configuration, compared with the bare pipeline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from qua2sedimo.errors import failures_of
from qua2sedimo.images.generate import Generator, without_safety_checker
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.switch import Switch
from qua2sedimo.options import Configuration
from qua2sedimo.system.machine import peak_memory


@dataclass(frozen=True)
class Trial:
    """Median seconds of one configuration, of its stages, and of the bare pipeline calls for the same images.

    ``overhead``: extra time of a configuration relative to the bare calls just before and after it, median over
    configurations; ``quartiles`` of the same.
    """

    bare: float
    total: float
    switch: float
    generate: float
    overhead: float
    images: int
    quartiles: tuple[float, float] = (0.0, 0.0)

    @property
    def metrics(self) -> float:
        """Seconds of comparing the images: the remainder."""
        return max(0.0, self.total - self.switch - self.generate)

    def of_all(self, images: int, share: float) -> Trial:
        """The same of so many images, where configurations had only this ``share`` of all weights."""
        by, switch = images / self.images, self.switch / share
        bare = by * self.bare
        added = (switch - by * self.switch) / bare  # to the overhead
        return Trial(
            bare, by * (self.total - self.switch) + switch, switch, by * self.generate, self.overhead + added, images,
            (self.quartiles[0] + added, self.quartiles[1] + added),
        )  # fmt: skip


Clock = Callable[[], float]


class TimedGenerator(Generator):
    """A generator that accumulates its seconds, measured by ``clock``."""

    seconds = 0.0
    clock: Clock = staticmethod(time.perf_counter)

    def __call__(self, start: int, stop: int, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        began = self.clock()
        images = super().__call__(start, stop, progress)
        self.seconds += self.clock() - began
        return images


def try_out(
    measurer: Measurer,
    generator: TimedGenerator,
    switch: Switch,
    configurations: Sequence[Configuration],
    progress: Callable[[int], object] = lambda done: None,
    clock: Clock = time.perf_counter,
    warm_up: bool = True,
) -> Trial:
    """Measure the configurations, each between bare calls for the same images; with ``warm_up``, the first does not
    count.

    The mean of the bare calls before and after cancels gradual changes of the machine's speed. ``clock`` may be
    ``time.process_time``, CPU seconds of this process, if others run beside it.
    """
    generator.clock = switch.clock = clock
    _ = measurer.reference
    bares, rows = [bare_seconds(generator, measurer.images, clock)], []
    for i, configuration in enumerate(configurations):
        switch.seconds = generator.seconds = 0.0
        began = clock()
        measurer(configuration)
        total = clock() - began
        bares.append(bare_seconds(generator, measurer.images, clock))
        rows.append(((bares[-2] + bares[-1]) / 2, total, switch.seconds, generator.seconds))
        progress(i + 1)
    counted = rows[1:] if warm_up else rows
    medians = [statistics.median(column) for column in zip(*counted)]
    low, overhead, high = np.quantile([total / bare - 1 for bare, total, _, _ in counted], [0.25, 0.5, 0.75]).tolist()
    return Trial(medians[0], medians[1], medians[2], medians[3], overhead, len(measurer.images), (low, high))


@torch.no_grad()
def bare_seconds(generator: Generator, images: range, clock: Clock = time.perf_counter) -> float:
    """Seconds of the bare pipeline calls for these images."""
    began, low = clock(), images.start
    with without_safety_checker(generator.pipeline), failures_of(type(generator.pipeline).__name__):
        while low < images.stop:
            indices = range(low, min(low + generator.batch, images.stop))
            generator.run(indices)
            low += min(len(indices), generator.batch)  # fewer, if the pipeline turned out to take no lists
    return clock() - began


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_bytes() -> int:
    """Peak memory of this process in bytes: on the GPU if torch uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return peak_memory()
