"""All computable metrics of a set of images, with intervals, against the same references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qua2sedimo.images.pictures import Pictures
from qua2sedimo.metrics.catalogue import InputScore, Metric, metric
from qua2sedimo.metrics.estimates import Estimate, mean_estimate
from qua2sedimo.metrics.values import SetReferences, per_image, per_set


@dataclass(frozen=True)
class References:
    """What images are compared with.

    ``paired``: full-precision images of the same inputs and noise; ``other``: full-precision images of other
    noise, for set metrics; ``real``: real images (uint8), if any.
    """

    paired: np.ndarray
    other: np.ndarray
    real: np.ndarray | None


class MetricEstimator:
    """Estimates of metrics for sets of images against the same references.

    Metrics that cannot be computed are left out: those of latents, and those that need a judge or real images where
    there are none.
    """

    def __init__(
        self,
        references: References,
        inputs: Sequence[str | int],
        metrics: Sequence[str],
        input_score: InputScore | None = None,
    ) -> None:
        self.references, self.inputs, self._input_score = references, list(inputs), input_score
        self.metrics = [m for m in map(metric, dict.fromkeys(metrics)) if self._possible(m)]
        self._sets = SetReferences(lambda: references.other, references.real)

    def __call__(self, images: np.ndarray) -> dict[str, Estimate]:
        """Metrics of images that use the same inputs and noise as ``references.paired``."""
        paired = Pictures(self.references.paired)
        values = per_image(self.metrics, Pictures(images), paired, self.inputs, self._input_score)
        estimates = {name: mean_estimate(np.array(v)) for name, v in values.items()}
        estimates |= per_set(self.metrics, images, self._sets)
        return {m.name: estimates[m.name] for m in self.metrics}

    def _possible(self, m: Metric) -> bool:
        if m.of == "latents" or (m.against == "real" and self.references.real is None):
            return False
        return m.kind != "input" or m.judge is not None or self._input_score is not None
