"""What an entry of the coverage table is: constructor arguments and the inputs of one call, both small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


class Draw:
    """Random inputs by shape, the same for every new instance: ``draw(2, 4, 8, 8)`` is a normal tensor."""

    def __init__(self) -> None:
        self._chance = torch.Generator().manual_seed(5)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._chance)

    def whole(self, high: int, *shape: int) -> torch.Tensor:
        """Whole numbers below ``high``: token ids, labels."""
        return torch.randint(high, shape, generator=self._chance)


Inputs = Callable[[Draw], dict[str, Any]]


@dataclass(frozen=True)
class Small:
    """A small instance of a class: ``arguments`` of its constructor, ``inputs`` (keywords) of one forward pass.

    ``prepare`` is called with the instance, for what no argument of the constructor says.
    """

    inputs: Inputs
    arguments: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None


def small(inputs: Inputs, *, prepare: Callable[[Any], None] | None = None, **arguments: Any) -> Small:
    return Small(inputs, arguments, prepare)


def steps(*values: float) -> torch.Tensor:
    """One time step per sample; float where the class embeds fractions."""
    return torch.tensor(values)


def ones(*shape: int) -> torch.Tensor:
    """A mask that hides nothing."""
    return torch.ones(shape, dtype=torch.long)


def grid(*sizes: int, axes: int = 3) -> torch.Tensor:
    """Positions [∏sizes, axes] of a grid's cells; the first axes are 0 if there are more than sizes."""
    cells = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(sizes)).float()
    return torch.cat([torch.zeros(len(cells), axes - len(sizes)), cells], dim=1)
