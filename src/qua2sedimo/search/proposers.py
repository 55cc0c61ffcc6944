"""Proposers: each turns what is known of a space into a score for every option of every layer.

All have one interface, ``Proposer``: evidence in, scores out. None of them knows of budgets; the integer program adds
the scores up under one. Scores of different proposers are not comparable with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qua2sedimo.damage import DECIBEL, DamageModel, Features, Observations, fit_damage
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.search.programs import Values


@dataclass(frozen=True)
class Measured:
    """One measured configuration: which kind it is (0: one layer alone), its quality in dB (higher is better), and a
    name for the images it was measured on."""

    kind: int
    configuration: Configuration
    quality: float
    images: Hashable = 0


@dataclass(frozen=True)
class Evidence:
    """What is known: relative errors of all options, their features, and what was measured."""

    space: SearchSpace
    errors: Mapping[str, Mapping[Option, float]]
    features: Features
    measured: Sequence[Measured] = ()

    @cached_property
    def observations(self) -> Observations:
        images = {name: i for i, name in enumerate(dict.fromkeys(m.images for m in self.measured))}
        return Observations(
            self.space.encode_partial([m.configuration for m in self.measured]),
            np.array([-DECIBEL * m.quality for m in self.measured]),
            np.array([m.kind for m in self.measured], dtype=int),
            np.array([images[m.images] for m in self.measured], dtype=int),
        )

    @cached_property
    def model(self) -> DamageModel:
        """The damage model of all that was measured; of nothing, its prior."""
        return fit_damage(self.features, self.observations)

    def predicted(self, configurations: Sequence[Configuration], model: DamageModel | None = None) -> np.ndarray:
        """Quality in dB that the damage model expects [configurations]."""
        return -(model or self.model).predict(self.space.encode_partial(configurations)) / DECIBEL


_FLOOR = 1e-9  # the relative error of an exact option
Proposer = Callable[[Evidence], Values]


def sum_of_errors(evidence: Evidence) -> Values:
    """Minus the relative error: every layer equally sensitive, nothing measured."""
    return {n: {o: -e for o, e in evidence.errors[n].items()} for n in evidence.space.layers}


def by_gradients(evidence: Evidence) -> Values:
    """Minus the damage by the damage model before anything is measured, that is by gradients; without these, as
    :func:`sum_of_errors`."""
    if "cost" not in evidence.features.groups:
        return sum_of_errors(evidence)
    return most_likely(replace(evidence, measured=()))


def one_at_a_time(evidence: Evidence) -> Values:
    """Minus sensitivity × relative error, the sensitivity from the layer measured alone: D = s·e.

    Of several measurements of a layer the mean of ln s counts. Raises if a layer was never measured alone.
    """
    found: dict[str, list[float]] = {n: [] for n in evidence.space.layers}
    for m in evidence.measured:
        if m.kind == 0:
            ((layer, option),) = m.configuration.items()
            found[layer].append(-DECIBEL * m.quality - np.log(evidence.errors[layer][option] + _FLOOR))
    missing = [n for n, values in found.items() if not values]
    if missing:
        raise Qua2SeDiMoError(f"layer '{missing[0]}' was never measured alone ({len(missing)} like it)")
    return {
        n: {o: -float(np.exp(np.mean(found[n])) * e) for o, e in evidence.errors[n].items()}
        for n in evidence.space.layers
    }


def most_likely(evidence: Evidence) -> Values:
    """Minus the damage by the damage model of everything that was measured."""
    return evidence.model.scores(evidence.space)


def drawn(evidence: Evidence, rng: np.random.Generator, spread: float = 1.0) -> Values:
    """As :func:`most_likely`, of one model drawn from those the measurements leave possible (Thompson sampling)."""
    return evidence.model.draw(rng, spread).scores(evidence.space)
