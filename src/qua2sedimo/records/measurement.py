"""The measurement of one configuration: plain values, per image and per set of images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.metrics.estimates import Estimate, mean_estimate


@dataclass(frozen=True)
class Measurement:
    """Metrics of images ``start`` to ``start + n`` of a configuration, and the seconds it took.

    ``values``: per-image values of each paired or input metric; ``sets``: estimates of set metrics.
    """

    start: int
    values: dict[str, list[float]]
    seconds: float
    sets: dict[str, Estimate] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of images measured."""
        return max([*map(len, self.values.values()), *(e.images for e in self.sets.values())], default=0)

    def value(self, name: str) -> float:
        """A metric of either kind; raises :class:`Qua2SeDiMoError` if it was not measured."""
        if name in self.sets:
            return self.sets[name].value
        return float(np.mean(self._of_images(name)))

    def estimate(self, name: str) -> Estimate:
        """A metric of either kind with its interval; raises :class:`Qua2SeDiMoError` if it was not measured."""
        return self.sets[name] if name in self.sets else mean_estimate(np.array(self._of_images(name)))

    @property
    def means(self) -> dict[str, float]:
        """Every metric's value."""
        return {name: self.value(name) for name in (*self.values, *self.sets)}

    def after(self, images: int) -> Measurement | None:
        """This measurement without its first ``images`` images, and without set metrics; None if nothing is left."""
        left = self.images - images
        if left <= 0 or not self.values:
            return None
        values = {name: of[images:] for name, of in self.values.items()}
        return Measurement(self.start + images, values, self.seconds * left / self.images)

    def _of_images(self, name: str) -> list[float]:
        if name not in self.values:
            known = ", ".join((*self.values, *self.sets))
            raise Qua2SeDiMoError(f"metric '{name}' was not measured; measured: {known}", "Add it to 'metrics'.")
        return self.values[name]
