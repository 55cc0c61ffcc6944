"""Answers to the questions of docs/coverage.md, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qua2sedimo.errors import Qua2SeDiMoError

YES = "yes"


def answered(ask: Callable[..., str], *given: Any) -> str:
    """What ``ask`` answers: "yes", "n/a: why", or what does not hold; an error is an answer too."""
    try:
        return ask(*given)
    except Qua2SeDiMoError as error:
        return f"refused: {error.message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refused(act: Callable[[], Any]) -> bool:
    """Whether an action raises this package's error."""
    try:
        act()
    except Qua2SeDiMoError:
        return True
    return False
