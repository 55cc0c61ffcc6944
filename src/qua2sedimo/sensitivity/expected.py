"""Sensitivity before any picture is measured: where, and in which steps, damage is expected at one width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.formats.tabular import write_rows
from qua2sedimo.options import Option

#: Average bits of the options that are compared.
WIDTH = 3.0
#: Thirds of sampling, from noise to image.
THIRDS = ("early", "middle", "late")


@dataclass(frozen=True)
class ExpectedDamage:
    """A layer, its option of about three bits, and what this does to the squared guided output: as a ``share`` of all
    layers' together, and of it ``thirds`` in early, middle and late steps (they add up to 1)."""

    layer: WeightLayer
    option: Option
    share: float
    thirds: tuple[float, float, float]


@dataclass(frozen=True)
class ExpectedRow:
    """:class:`ExpectedDamage` as a row of a table."""

    layer: str
    operation: str
    block: str
    stage: str
    weights: int
    option: str
    share: float
    early: float
    middle: float
    late: float

    @classmethod
    def of(cls, found: ExpectedDamage) -> ExpectedRow:
        layer = found.layer
        about = layer.name, layer.operation, layer.block, layer.stage, layer.weights, str(found.option)
        return cls(*about, found.share, *found.thirds)


@dataclass(frozen=True)
class ExpectedOfGroup:
    """The sums over a group of layers: ``share`` of the damage, ``weights`` as a share of all, and ``thirds``."""

    name: str
    layers: int
    share: float
    weights: float
    thirds: tuple[float, float, float]

    @property
    def per_weight(self) -> float:
        """How much more damage a weight of the group does than the mean weight."""
        return self.share / self.weights


def expected_damage(layers: Mapping[str, WeightLayer], bank: Bank) -> list[ExpectedDamage]:
    """Every layer that was weighed, most damage first, by its codes of about :data:`WIDTH` average bits.

    Layers have different widths: a bit more or less counts as a factor of four.
    """
    found = []
    for name, changes in bank.changes.of.items():
        option, factor = at_width(bank, name)
        place = bank.space.options[name].index(option)
        squares = changes.values[place].double().square().numpy() * factor
        found.append((layers[name], option, squares, np.array(changes.places)))
    total = sum(float(squares.mean()) for _, _, squares, _ in found)
    if total == 0:
        return []
    rows = [
        ExpectedDamage(layer, option, float(squares.mean()) / total, _thirds(squares, places))
        for layer, option, squares, places in found
    ]
    return sorted(rows, key=lambda row: -row.share)


def at_width(bank: Bank, layer: str) -> tuple[Option, float]:
    """(the layer's option of about :data:`WIDTH` average bits, by what its damage is multiplied to be that at exactly
    so many: a bit more or less counts as a factor of four)."""
    option, shape = bank.near(layer, WIDTH), bank.space.shapes[layer]
    return option, 4.0 ** (8 * option.nbytes(shape) / math.prod(shape) - WIDTH)


def write_expected(rows: Sequence[ExpectedDamage], path: Path) -> None:
    """Write one row a layer, .csv or .parquet."""
    write_rows(ExpectedRow, [ExpectedRow.of(row) for row in rows], path)


def expected_by(rows: Sequence[ExpectedDamage], by: str) -> list[ExpectedOfGroup]:
    """Sums by ``operation``, ``block`` or ``stage``, most damage a weight first."""
    groups: dict[str, list[ExpectedDamage]] = {}
    for row in rows:
        groups.setdefault(str(getattr(row.layer, by)), []).append(row)
    every = sum(row.layer.weights for row in rows)
    found = []
    for name, members in groups.items():
        share = sum(row.share for row in members)
        weights = sum(row.layer.weights for row in members) / every
        found.append(ExpectedOfGroup(name, len(members), share, weights, _together(members, share)))
    return sorted(found, key=lambda group: -group.per_weight)


def _thirds(squares: np.ndarray, places: np.ndarray) -> tuple[float, float, float]:
    """The shares of early, middle and late calls, each third counted as if it had as many calls as the others."""
    number = np.minimum((3 * places).astype(int), 2)
    means = [float(squares[number == i].mean()) if (number == i).any() else 0.0 for i in range(3)]
    total = sum(means)
    return (means[0] / total, means[1] / total, means[2] / total) if total > 0 else (1 / 3, 1 / 3, 1 / 3)


def _together(members: Iterable[ExpectedDamage], share: float) -> tuple[float, float, float]:
    if share == 0:
        return (1 / 3, 1 / 3, 1 / 3)
    early, middle, late = (sum(row.share * row.thirds[i] for row in members) / share for i in range(3))
    return early, middle, late
