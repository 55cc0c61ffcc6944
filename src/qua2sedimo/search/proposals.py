"""Candidates worth measuring: what several programs think best under one budget."""

from __future__ import annotations

from collections.abc import Iterable

from qua2sedimo.options import Configuration, SearchSpace
from qua2sedimo.search.choose import Values, best_configurations
from qua2sedimo.search.constraints import Allowed


def propose(
    space: SearchSpace,
    nbytes: int,
    programs: Iterable[tuple[str, Values]],
    count: int,
    allowed: Allowed | None = None,
) -> list[tuple[Configuration, str]]:
    """At most ``count`` distinct configurations, each with the name of the program that proposed it first.

    Every program gives its best answer in turn; what is then left of ``count`` is filled with the first program's
    next best ones.
    """
    programs = list(programs)
    found: dict[Configuration, str] = {}
    for name, values in programs[:count]:
        for configuration in best_configurations(space, values, nbytes, 1, allowed):
            found.setdefault(configuration, name)
    name, values = programs[0]
    if len(found) < count:
        for configuration in best_configurations(space, values, nbytes, count, allowed):
            if len(found) < count:
                found.setdefault(configuration, name)
    return list(found.items())
