"""How a stage says how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called with (done, total, what is being done).
Progress = Callable[[int, int, str], object]


def silent(done: int, total: int, what: str) -> None:
    return None
