"""Images in memory, the latents they were decoded from, and cached features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Pictures:
    """Float images [n, h, w, c] in 0 to 1 and, if recorded, the latents [n, ...] they were decoded from."""

    images: np.ndarray
    latents: np.ndarray | None = None
    _views: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def view(self, function: Callable[[np.ndarray], Any]) -> Any:
        """``function(images)``, cached: several metrics compare the same feature maps."""
        if function not in self._views:
            self._views[function] = function(self.images)
        return self._views[function]


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in 0 to 1 as uint8."""
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
