"""How a stage reports its progress."""

from __future__ import annotations

from collections.abc import Callable

#: Called with (done, total, what), when a stage begins and after every step.
Progress = Callable[[int, int, str], object]

_NOTE = " · "


def silent(done: int, total: int, what: str) -> None:
    """Report nothing."""


def noted(what: str, note: str) -> str:
    """``what`` with a note that may change from call to call, such as the best value so far."""
    return f"{what}{_NOTE}{note}"


def without_note(what: str) -> str:
    """``what`` without its note: the name of the stage."""
    return what.partition(_NOTE)[0]
