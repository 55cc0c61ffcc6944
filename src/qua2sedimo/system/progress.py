"""How a stage says how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called with (done, total, what is being done).
Progress = Callable[[int, int, str], object]

_NOTE = " · "


def silent(done: int, total: int, what: str) -> None:
    return None


def noted(what: str, note: str) -> str:
    """What is being done, with a note that may change while it is done."""
    return f"{what}{_NOTE}{note}"


def without_note(what: str) -> str:
    return what.partition(_NOTE)[0]
