"""Statistics of several denoisers of one pipeline, by the units' joined names: COMPONENT.LAYER."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from qua2sedimo.quantizers import Moment
from qua2sedimo.statistics.sources import Source
from qua2sedimo.statistics.store import Statistics


class JoinedStatistics:
    """``parts``: component → the statistics of its denoiser, each observed by itself."""

    def __init__(self, parts: Mapping[str, Statistics]) -> None:
        self.parts = dict(parts)

    @property
    def folder(self) -> Path:
        """The folder that holds the folder of each component."""
        return next(iter(self.parts.values())).folder.parent

    @property
    def sources(self) -> list[Source]:
        """All sources, with their units' joined names."""
        return [
            replace(source, units=tuple(f"{component}.{unit}" for unit in source.units))
            for component, part in self.parts.items()
            for source in part.sources
        ]

    @cached_property
    def digest(self) -> str:
        """Eight hex digits that identify these statistics."""
        every = "".join(f"{component}{part.digest}" for component, part in self.parts.items())
        return hashlib.sha256(every.encode()).hexdigest()[:8]

    @property
    def has_gradients(self) -> bool:
        """Whether gradients were observed for every denoiser."""
        return all(part.has_gradients for part in self.parts.values())

    def part(self, component: str) -> Statistics:
        """The statistics of a component alone."""
        return self.parts[component]

    @property
    def without_gradients(self) -> tuple[str, ...]:
        """Names of denoisers whose gradients were not observed."""
        return tuple(component for component, part in self.parts.items() if not part.has_gradients)

    @property
    def images(self) -> int:
        """Images that each denoiser was observed on."""
        return min(part.images for part in self.parts.values())

    def moment(self, unit: str) -> Moment | None:
        """The second moment of a unit's inputs; None if it was not called or the moment cannot be used."""
        component, _, own = unit.partition(".")
        return self.parts[component].moment(own)

    def forget_moments(self) -> None:
        """Free the moments that are kept for being asked for again."""
        for part in self.parts.values():
            part.forget_moments()

    def gradient(self, unit: str) -> torch.Tensor | None:
        """Squared gradients at a unit's outputs, fp64 [channels]; None if there are none."""
        component, _, own = unit.partition(".")
        return self.parts[component].gradient(own)

    def notes(self) -> dict[str, str]:
        """Why units are rounded to nearest levels, or by an uncertain moment."""
        return {f"{c}.{unit}": note for c, part in self.parts.items() for unit, note in part.notes().items()}
