"""Which layers are sensitive by what is known of them: gradients, records, each layer measured alone, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.metrics.estimates import Estimate, rank_estimate
from qua2sedimo.sensitivity.expected import ExpectedDamage
from qua2sedimo.sensitivity.tables import LayerStep

_LEAST = 4  # layers that a correlation is told of


@dataclass(frozen=True)
class Source:
    """Something known of layers: the share of each in what all of them cost, by layer."""

    name: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two sources over the layers that both know."""

    first: str
    second: str
    correlation: Estimate


@dataclass(frozen=True)
class GroupShares:
    """A group of layers, and its share by each source, None where the source knows none of them."""

    name: str
    layers: int
    shares: tuple[float | None, ...]


def sources(
    expected: Sequence[ExpectedDamage], source: str, steps: Sequence[LayerStep], alone: Mapping[str, float]
) -> list[Source]:
    """Those that know something: damage at about three bits expected from ``source``, the cost of 4 → 3 bits from
    records, and the damage of each layer ``alone`` at about three bits."""
    found = [
        (source, {row.layer.name: row.share for row in expected}),
        ("records", {row.layer.name: max(row.step.cost, 0.0) for row in steps}),
        ("layers alone", dict(alone)),
    ]
    return [Source(name, _shares(values)) for name, values in found if sum(values.values()) > 0]


def agreements(known: Sequence[Source]) -> list[Agreement]:
    """Of every pair of sources that know enough layers in common."""
    found = []
    for i, first in enumerate(known):
        for second in known[i + 1 :]:
            layers = [name for name in first.shares if name in second.shares]
            pairs = np.array([[first.shares[n], second.shares[n]] for n in layers])
            if len(layers) >= _LEAST and pairs.std(axis=0).min() > 0:
                found.append(Agreement(first.name, second.name, rank_estimate(*pairs.T)))
    return found


def shares_by(known: Sequence[Source], layers: Mapping[str, WeightLayer], by: str) -> list[GroupShares]:
    """Sums by ``operation``, ``block`` or ``stage``, the largest share of the first source first."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for source in known for name in source.shares):
        groups.setdefault(str(getattr(layers[name], by)), []).append(name)
    rows = [GroupShares(name, len(members), tuple(_sum(s, members) for s in known)) for name, members in groups.items()]
    return sorted(rows, key=lambda row: -(row.shares[0] or 0.0))


def _sum(source: Source, members: Sequence[str]) -> float | None:
    values = [source.shares[name] for name in members if name in source.shares]
    return sum(values) if values else None


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    total = sum(values.values())
    return {name: value / total for name, value in values.items()}
