"""Measure configurations: generate their images, compare them with full precision, report per image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qua2sedimo.evaluation.generate import Generator
from qua2sedimo.evaluation.metrics import Estimate, mean_estimate, metric
from qua2sedimo.evaluation.switch import Switch
from qua2sedimo.options import Configuration

InputScore = Callable[[np.ndarray, Sequence[str | int]], np.ndarray]


@dataclass(frozen=True)
class Measurement:
    """What images ``start`` to ``start + n`` of a configuration are worth, and the seconds it took.

    ``values``: per-image values of each paired or input metric; ``sets``: estimates of metrics that only a set of
    images has.
    """

    start: int
    values: dict[str, list[float]]
    seconds: float
    sets: dict[str, Estimate] = field(default_factory=dict)

    def estimate(self, name: str) -> Estimate:
        """A metric of either kind with its interval."""
        return self.sets[name] if name in self.sets else mean_estimate(np.array(self.values[name]))

    @property
    def means(self) -> dict[str, float]:
        """Every metric's value."""
        paired = {name: float(np.mean(values)) for name, values in self.values.items()}
        return {**paired, **{name: estimate.value for name, estimate in self.sets.items()}}


class Measurer:
    """Measures configurations of one live denoiser on a fixed range of images.

    Full-precision images are made once, when first needed. ``input_score`` answers the ``accuracy`` metric: it
    takes images (uint8) and their inputs and gives a value in 0 to 1 per image.
    """

    def __init__(
        self,
        generator: Generator,
        switch: Switch,
        metrics: Sequence[str],
        images: range,
        input_score: InputScore | None = None,
    ) -> None:
        self.generator, self.switch, self.images = generator, switch, images
        self._metrics = [metric(name) for name in metrics]
        self._input_score = input_score
        self._reference: np.ndarray | None = None

    @property
    def reference(self) -> np.ndarray:
        """The full-precision images."""
        if self._reference is None:
            self.switch.restore()
            self._reference = self.generator(self.images.start, self.images.stop)
        return self._reference

    def __call__(self, configuration: Configuration) -> Measurement:
        reference = self.reference
        began = time.perf_counter()
        self.switch.apply(configuration)
        images = self.generator(self.images.start, self.images.stop)
        values = per_image(self._metrics, images, reference, self.inputs, self._input_score)
        return Measurement(self.images.start, values, time.perf_counter() - began)

    @property
    def inputs(self) -> list[str | int]:
        found = [self.generator.generation.input(i) for i in self.images]
        return [value for value in found if value is not None]


def per_image(
    metrics: Sequence[object],
    images: np.ndarray,
    reference: np.ndarray,
    inputs: Sequence[str | int],
    input_score: InputScore | None,
) -> dict[str, list[float]]:
    """Values of the paired and input metrics for each image."""
    values: dict[str, list[float]] = {}
    for m in map(metric_of, metrics):
        if m.kind == "paired":
            values[m.name] = [float(v) for v in m.compute(images, reference)]
        elif m.kind == "input" and input_score is not None:
            values[m.name] = [float(v) for v in m.compute(input_score(to_uint8(images), inputs))]
    return values


def metric_of(value: object):  # type: ignore[no-untyped-def]
    return metric(value) if isinstance(value, str) else value


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in 0 to 1 as 8-bit pictures."""
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
