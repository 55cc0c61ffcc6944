"""Measure configurations: generate their images and compare them with full precision, per image and per set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from types import MappingProxyType

import numpy as np

from qua2sedimo.images.generate import Generator
from qua2sedimo.images.latents import final_latents
from qua2sedimo.images.ledger import SET_REFERENCES
from qua2sedimo.images.pictures import Pictures
from qua2sedimo.images.reference import ReferenceStore
from qua2sedimo.measuring.switch import Switch
from qua2sedimo.metrics.catalogue import InputScore, metric
from qua2sedimo.metrics.values import SetReferences, per_image, per_set
from qua2sedimo.options import Configuration
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.records.measurement import Measurement

#: Number of full-precision images that set metrics compare with while measuring.
REFERENCE_IMAGES = 128


class Measurer:
    """Measures configurations of one live denoiser on a fixed range of images.

    Full-precision images, and the features that set metrics compare with, are computed once, on first use; ``kept``
    stores the images, and reads those that other processes stored. ``input_score`` computes the ``accuracy`` metric: it
    takes images (uint8) and their inputs and returns a value in 0 to 1 per image. ``real``: real images (uint8), for
    metrics against them.
    """

    def __init__(
        self,
        generator: Generator,
        switch: Switch,
        metrics: Sequence[str],
        images: range,
        input_score: InputScore | None = None,
        real: np.ndarray | None = None,
        kept: ReferenceStore | None = None,
    ) -> None:
        self.generator, self.switch, self.images = generator, switch, images
        self._kept = kept
        self._metrics = [metric(name) for name in metrics]
        self._input_score = input_score
        self._references = SetReferences(self._other, real)

    @property
    def reference(self) -> np.ndarray:
        """The full-precision images."""
        return self._full.images

    def prepare(self) -> None:
        """Generate or read what configurations are compared with: if this fails, no configuration is the cause."""
        _ = self._full
        self._references.prepare(self._metrics)

    def __call__(
        self, configuration: Configuration, values: Mapping[str, QuantizedWeight] = MappingProxyType({})
    ) -> Measurement:
        """Measure a configuration; ``values`` are quantized weights of units that differ from those of the bank."""
        self.prepare()
        full = self._full
        began = time.perf_counter()
        self.switch.apply(configuration)
        for unit, value in values.items():
            self.switch.write(unit, value)
        made = self._generate(self.images, self._latents_wanted, self.generator)
        found = per_image(self._metrics, made, full, self.inputs, self._input_score)
        sets = per_set(self._metrics, made.images, self._references)
        return Measurement(self.images.start, found, time.perf_counter() - began, sets)

    @property
    def inputs(self) -> list[str | int]:
        found = [self.generator.generation.input(i) for i in self.images]
        return [value for value in found if value is not None]

    @cached_property
    def _full(self) -> Pictures:
        return self._full_precision(self.images, self._latents_wanted)

    def _other(self) -> np.ndarray:
        return self._full_precision(SET_REFERENCES.images(REFERENCE_IMAGES), False).images

    def _full_precision(self, images: range, latents: bool) -> Pictures:
        def make() -> Pictures:
            self.switch.restore()
            return self._generate(images, latents, self.generator.full_precision)

        if self._kept is None:
            return make()
        found = self._kept(images, latents, make)
        self.generator.check_reference(found.images, images.start)
        return found

    @property
    def _latents_wanted(self) -> bool:
        return any(m.of == "latents" for m in self._metrics)

    def _generate(self, images: range, latents: bool, generate: Callable[[int, int], np.ndarray]) -> Pictures:
        one_by_one = self.generator.one_by_one
        with final_latents(self.generator.pipeline) if latents else nullcontext() as seen:
            made = generate(images.start, images.stop)
        if seen is not None and self.generator.one_by_one != one_by_one:
            return self._generate(images, latents, generate)  # the recorded latents include those of a discarded batch
        return Pictures(made, seen.array(len(made)) if seen is not None else None)
