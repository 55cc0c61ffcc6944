"""Metric values of generated images: per image where a metric has them, else for the set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.pictures import Pictures, to_uint8
from qua2sedimo.metrics.catalogue import InputScore, Metric
from qua2sedimo.metrics.estimates import Estimate, set_estimate


class SetReferences:
    """Features that set metrics compare with, computed once per network, on first use.

    ``other`` generates full-precision images with noise that no configuration uses; ``real``: real images (uint8).
    """

    def __init__(self, other: Callable[[], np.ndarray], real: np.ndarray | None) -> None:
        self._other, self._real = other, real
        self._images: np.ndarray | None = None
        self._features: dict[tuple[object, str | None, str], np.ndarray] = {}

    def features(self, m: Metric) -> np.ndarray:
        """Features [n, d] of the images that ``m`` compares with."""
        key = (m.features, m.source, m.against)
        if key not in self._features:
            self._features[key] = features_of(m, self._pictures(m))
        return self._features[key]

    def prepare(self, metrics: Sequence[Metric]) -> None:
        """Compute the features that these metrics compare with."""
        for m in metrics:
            if m.kind == "set":
                self.features(m)

    def _pictures(self, m: Metric) -> np.ndarray:
        if m.against == "real":
            if self._real is None:
                raise Qua2SeDiMoError(f"metric '{m.name}' needs real pictures, and there are none", "Leave it out.")
            return self._real.astype(np.float32) / 255
        if self._images is None:
            self._images = self._other()
        return self._images


def features_of(m: Metric, images: np.ndarray) -> np.ndarray:
    """Features float64 [n, d] of float images, for a set metric."""
    assert m.features is not None, f"{m.name} is no set metric"
    return m.features(m.source)(images)


def per_image(
    metrics: Sequence[Metric],
    made: Pictures,
    full: Pictures,
    inputs: Sequence[str | int],
    input_score: InputScore | None,
) -> dict[str, list[float]]:
    """Values of the paired and input metrics for each image.

    Raises :class:`Qua2SeDiMoError` if a metric needs a judge or latents and there are none.
    """
    values: dict[str, list[float]] = {}
    for m in metrics:
        if m.kind == "paired":
            values[m.name] = [float(v) for v in m.compute(_compared(m, made), _compared(m, full))]
        elif m.kind == "input":
            judge = m.judge(m.source) if m.judge is not None else input_score
            if judge is None:
                raise Qua2SeDiMoError(f"metric '{m.name}' needs a classifier, and there is none", "Leave it out.")
            values[m.name] = [float(v) for v in m.compute(judge(to_uint8(made.images), inputs))]
    return values


def _compared(m: Metric, pictures: Pictures) -> Any:
    """What a paired metric compares; raises :class:`Qua2SeDiMoError` if it needs latents and there are none."""
    if m.of == "images":
        return pictures.images if m.view is None else pictures.view(m.view)
    if pictures.latents is None:
        raise Qua2SeDiMoError(f"metric '{m.name}' needs latents, and these pictures have none", "Leave it out.")
    return pictures.latents


def per_set(metrics: Sequence[Metric], images: np.ndarray, references: SetReferences) -> dict[str, Estimate]:
    """Estimates of the set metrics; metrics with the same feature network share its features."""
    own: dict[tuple[object, str | None], np.ndarray] = {}
    estimates = {}
    for m in metrics:
        if m.kind == "set":
            key = (m.features, m.source)
            if key not in own:
                own[key] = features_of(m, images)
            estimates[m.name] = set_estimate(m.compute, own[key], references.features(m))
    return estimates
