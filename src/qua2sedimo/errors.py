"""The one exception users meet: it names the thing, what was expected of it, and the remedy."""

from __future__ import annotations


class Stopped(Exception):
    """The user pressed Ctrl-C during a stage that can be resumed."""


class Qua2SeDiMoError(Exception):
    """A problem with the input or the machine, not a defect of the program.

    ``message`` names the thing and what was expected of it; ``remedy`` says what to do. The command line
    prints both and exits with status 1.
    """

    def __init__(self, message: str, remedy: str | None = None) -> None:
        self.message, self.remedy = message, remedy
        super().__init__(message if remedy is None else f"{message}\n{remedy}")
