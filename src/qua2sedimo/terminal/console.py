"""Where the command line prints, and how its tables and numbers look."""

from __future__ import annotations

import logging
import math
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.text import printable, shortened
from qua2sedimo.system.notes import LOGGER

# Texts are printed as they are: names of layers and folders may hold brackets and colons.
console = Console(markup=False, emoji=False, highlight=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)


#: Characters of a message; what is longer repeats something that is no name or number.
_MOST_SHOWN = 4_000


class _Interval(Protocol):
    """Ends of a 95 % interval; NaN where there is none."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def say(text: str | Text) -> None:
    """Print a line; long paths are not wrapped, so that they can be copied."""
    console.print(text, soft_wrap=True)


def say_error(error: Qua2SeDiMoError) -> None:
    """Print what went wrong, and on the next line what to do about it, to stderr.

    What comes from the user is shown without control characters, and without its middle if it is very long.
    """
    errors.print(Text.assemble(("error:", "bold red"), f" {_shown(error.message)}"), soft_wrap=True)
    if error.remedy:
        errors.print(Text.assemble(("→", "dim"), f" {_shown(error.remedy)}"), soft_wrap=True)


def _shown(text: str) -> str:
    return printable(shortened(text, _MOST_SHOWN))


class _Notes(logging.Handler):
    """Prints remarks to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(Text.assemble(("note:", "bold"), f" {record.getMessage()}"), soft_wrap=True)


def show_notes() -> None:
    """Print what :func:`qua2sedimo.system.notes.note` is told from now on."""
    LOGGER.handlers, LOGGER.propagate = [_Notes()], False


def table(*columns: str | Column, title: str | None = None, **more: Any) -> Table:
    """An empty table in the style of all of them: the first column to the left, numbers to the right.

    A :class:`rich.table.Column` is taken as it is; ``more`` goes to :class:`rich.table.Table`.
    """
    made = [
        Column(c, justify="right" if i else "left", no_wrap=True) if isinstance(c, str) else c
        for i, c in enumerate(columns)
    ]
    style = {"box": box.SIMPLE_HEAD, "padding": (0, 1), "pad_edge": False}
    return Table(*made, title=title, title_justify="left", caption_justify="left", **{**style, **more})


def number(value: float, spec: str = ".2f") -> str:
    """A number in the format ``spec``, ``–`` for NaN."""
    return "–" if math.isnan(value) else f"{value:{spec}}"


def interval(of: _Interval, spec: str = ".2f") -> str:
    """``19.50 to 20.50``; nothing where there is no interval, as of a single image."""
    return f"{of.low:{spec}} to {of.high:{spec}}" if math.isfinite(of.high - of.low) else ""
