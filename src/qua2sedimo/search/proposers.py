"""Proposers: each turns what is known of a space into a score for every option of every layer.

All have one interface, ``Proposer``: evidence in, scores out. None of them knows of budgets; the integer program adds
the scores up under one. Scores of different proposers are not comparable with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.search.choose import Values
from qua2sedimo.search.damage import FLOOR, DamageModel, Observations, fit_damage


@dataclass(frozen=True)
class Measured:
    """One measured configuration: which kind it is (0: one layer alone), and its quality in dB (higher is better)."""

    kind: int
    configuration: Configuration
    quality: float


@dataclass(frozen=True)
class Evidence:
    """What is known: relative errors of all options, the groups each layer belongs to, and what was measured.

    ``groups``: lists of one name a layer, e.g. operations and blocks.
    """

    space: SearchSpace
    errors: Mapping[str, Mapping[Option, float]]
    groups: Sequence[Sequence[str]]
    measured: Sequence[Measured] = ()

    def log_errors(self, configuration: Configuration) -> np.ndarray:
        """ln of the relative error of each layer [layers], −inf where it is not quantized."""
        return np.array(
            [
                np.log(self.errors[n][configuration[n]] + FLOOR) if n in configuration else -np.inf
                for n in self.space.layers
            ]
        )

    @cached_property
    def observations(self) -> Observations:
        return Observations(
            np.array([self.log_errors(m.configuration) for m in self.measured]).reshape(-1, len(self.space.layers)),
            np.array([-m.quality for m in self.measured]) * np.log(10) / 10,
            np.array([m.kind for m in self.measured], dtype=int),
        )

    @cached_property
    def model(self) -> DamageModel:
        """The additive model of all that was measured; raises if nothing was."""
        if not self.measured:
            raise Qua2SeDiMoError("nothing was measured to fit the additive model to", "Run `qua2sedimo search`.")
        return fit_damage(self.groups, self.observations)

    def predicted(self, configurations: Sequence[Configuration], model: DamageModel | None = None) -> np.ndarray:
        """Quality in dB that the additive model expects [configurations]."""
        y, _ = (model or self.model).predict(np.array([self.log_errors(c) for c in configurations]))
        return -10 / np.log(10) * y

    def values(self, model: DamageModel) -> Values:
        """Minus the damage each option adds."""
        return {
            n: {
                o: -float(np.exp(s + model.exponent * np.log(self.errors[n][o] + FLOOR))) for o in self.space.options[n]
            }
            for n, s in zip(self.space.layers, model.log_sensitivity - model.log_sensitivity.mean())
        }


Proposer = Callable[[Evidence], Values]


def sum_of_errors(evidence: Evidence) -> Values:
    """Minus the relative error: every layer equally sensitive, nothing measured."""
    return {n: {o: -e for o, e in evidence.errors[n].items()} for n in evidence.space.layers}


def one_at_a_time(evidence: Evidence) -> Values:
    """Minus sensitivity × relative error, the sensitivity from the layer measured alone: D = s·e.

    Of several measurements of a layer the mean of ln s counts. Raises if a layer was never measured alone.
    """
    found: dict[str, list[float]] = {n: [] for n in evidence.space.layers}
    for m in evidence.measured:
        if m.kind == 0:
            ((layer, option),) = m.configuration.items()
            log_damage = -m.quality * np.log(10) / 10
            found[layer].append(log_damage - np.log(evidence.errors[layer][option] + FLOOR))
    missing = [n for n, values in found.items() if not values]
    if missing:
        raise Qua2SeDiMoError(f"layer '{missing[0]}' was never measured alone ({len(missing)} like it)")
    return {
        n: {o: -float(np.exp(np.mean(found[n])) * e) for o, e in evidence.errors[n].items()}
        for n in evidence.space.layers
    }


def most_likely(evidence: Evidence) -> Values:
    """Minus the damage by the additive model of everything that was measured."""
    return evidence.values(evidence.model)


def drawn(evidence: Evidence, rng: np.random.Generator, spread: float = 1.0) -> Values:
    """As :func:`most_likely`, of one model drawn from those the measurements leave possible (Thompson sampling)."""
    return evidence.values(evidence.model.draw(rng, spread))
