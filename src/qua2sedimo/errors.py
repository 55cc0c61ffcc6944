"""The one exception users meet: it names the thing, what was expected of it, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_OF_DTYPES = ("bfloat16", "float16", "half", "scalartype")  # in what torch says of dtypes that do not fit


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


def remedy_for(error: BaseException, remedy: str) -> str:
    """``remedy``, or a better one if the error looks like that of a model which computes only in another dtype."""
    said = str(error).lower()
    if not any(word in said for word in _OF_DTYPES):
        return remedy
    return (
        "Some pipelines and models compute only in fp32: try --dtype fp32 ('dtype:' in study.yaml), or in Python "
        f"pipeline.to(torch.float32). {remedy}"
    )


@contextmanager
def failures_of(pipeline: str) -> Iterator[None]:
    """Within, whatever a call of a diffusers pipeline raises becomes a :class:`Qua2SeDiMoError` with its first line."""
    try:
        yield
    except (Qua2SeDiMoError, Stopped):
        raise
    except Exception as error:
        raise failed(pipeline, described(error), error) from error


def failed(pipeline: str, said: str, error: Exception) -> Qua2SeDiMoError:
    """The error for a call of a diffusers pipeline that failed with ``error``, of which ``said`` tells."""
    return Qua2SeDiMoError(
        f"{pipeline} failed when called: {said}",
        remedy_for(
            error,
            "Check the pipeline's arguments: --arguments, or 'arguments:' in study.yaml. If the pipeline alone "
            "fails in the same way, the model or an installed package is the cause.",
        ),
    )


def described(error: BaseException) -> str:
    """``ValueError: its message``, up to the message's first line."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the exception's class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
