"""The final comparison: many images per row, every metric with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qua2sedimo.evaluation.measure import InputScore, per_image, to_uint8
from qua2sedimo.evaluation.metrics import Estimate, features_of, mean_estimate, metric, set_estimate


@dataclass(frozen=True)
class References:
    """What rows are compared with.

    ``paired``: full-precision images of the same inputs and noise; ``other``: full-precision images of other
    noise, for set distances; ``real``: real pictures (uint8) if there are any.
    """

    paired: np.ndarray
    other: np.ndarray
    real: np.ndarray | None


class Comparison:
    """Estimates of all metrics for sets of images against the same references."""

    def __init__(
        self,
        references: References,
        inputs: Sequence[str | int],
        metrics: Sequence[str],
        input_score: InputScore | None = None,
    ) -> None:
        self.references, self.inputs, self._input_score = references, list(inputs), input_score
        self.metrics = [metric(name) for name in metrics if self._possible(name)]
        self._features: dict[str, np.ndarray] = {}

    def __call__(self, images: np.ndarray) -> dict[str, Estimate]:
        """Metrics of images that use the same inputs and noise as ``references.paired``."""
        values = per_image(self.metrics, images, self.references.paired, self.inputs, self._input_score)
        estimates = {name: mean_estimate(np.array(v)) for name, v in values.items()}
        own = features_of(images) if any(m.kind == "set" for m in self.metrics) else None
        for m in self.metrics:
            if m.kind == "set" and own is not None:
                estimates[m.name] = set_estimate(m.compute, own, self._reference_features(m.name))
        return {m.name: estimates[m.name] for m in self.metrics}

    def _possible(self, name: str) -> bool:
        if name.endswith("_real"):
            return self.references.real is not None
        return self._input_score is not None if metric(name).kind == "input" else True

    def _reference_features(self, name: str) -> np.ndarray:
        source = "real" if name.endswith("_real") else "other"
        if source not in self._features:
            real = self.references.real
            images = self.references.other if source == "other" or real is None else real.astype(np.float32) / 255
            self._features[source] = features_of(images)
        return self._features[source]


__all__ = ["Comparison", "References", "to_uint8"]
