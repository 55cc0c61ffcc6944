"""Candidates worth measuring: what several programs think best under one budget."""

from __future__ import annotations

from collections.abc import Iterable

from qua2sedimo.options import Configuration, SearchSpace
from qua2sedimo.search.constraints import Allowed
from qua2sedimo.search.programs import Values, best_configurations


def propose(
    space: SearchSpace,
    nbytes: int,
    programs: Iterable[tuple[str, Values]],
    count: int,
    allowed: Allowed | None = None,
    also: Iterable[tuple[Configuration, str]] = (),
) -> list[tuple[Configuration, str]]:
    """At most ``count`` distinct configurations, each with the name of the program that proposed it first.

    The first program gives its best answer, then come those given as ``also``, then the other programs' best; what is
    then left of ``count`` is filled with the first program's next best ones.
    """
    programs = list(programs)
    found: dict[Configuration, str] = {}
    for number, (name, values) in enumerate(programs):
        answers = [(c, name) for c in best_configurations(space, values, nbytes, 1, allowed)]
        for configuration, origin in [*answers, *(also if number == 0 else ())]:
            if len(found) < count:
                found.setdefault(configuration, origin)
    name, values = programs[0]
    if len(found) < count:
        for configuration in best_configurations(space, values, nbytes, count, allowed):
            if len(found) < count:
                found.setdefault(configuration, name)
    return list(found.items())
