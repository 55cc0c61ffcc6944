"""The number of images per pipeline call: as many as fit into memory, found by trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from qua2sedimo.errors import Qua2SeDiMoError, failures_of
from qua2sedimo.formats.document import Document
from qua2sedimo.formats.files import read_json
from qua2sedimo.images.generate import Generation, Generator, in_steps
from qua2sedimo.system.machine import release_memory
from qua2sedimo.system.memory import is_out_of_memory, out_of_memory

_STEPS = 2  # peak memory does not grow with steps; the second shows what the first keeps alive


class BatchFile(Document):
    """batch.json: how many images a pipeline call makes."""

    remedy: ClassVar[str] = "Move it away; it will be determined again."

    format: Literal[1] = 1
    batch: int = Field(ge=1)

    @classmethod
    def load(cls, path: Path) -> BatchFile:
        """Earlier versions wrote the number alone."""
        content = read_json(path, cls.remedy)
        return cls(batch=content) if type(content) is int and content >= 1 else super().load(path)


def fitting_batch(pipeline: Any, generation: Generation, most: int) -> int:
    """The largest of ``most``, ``most``/2, … 1 images per pipeline call that does not run out of memory.

    Tries it with two steps if the pipeline takes a number of steps, and works with two: peak memory is the same. Raises
    :class:`Qua2SeDiMoError` if not even one image fits.
    """
    given, arguments = generation.arguments, in_steps(pipeline, generation.arguments, _STEPS)

    def attempt(batch: int) -> None:
        with failures_of(type(pipeline).__name__):
            Generator(pipeline, replace(generation, arguments=arguments, batch=batch))(0, batch)

    try:
        return largest_fitting(attempt, most)
    except Qua2SeDiMoError as error:
        if error.__cause__ is None or arguments == given:
            raise
    arguments = given  # some schedulers need more than two steps
    return largest_fitting(attempt, most)


def largest_fitting(attempt: Callable[[int], object], most: int) -> int:
    """The first of ``most``, ``most``/2, … 1 for which ``attempt`` does not run out of memory."""
    batch = most
    while True:
        try:
            attempt(batch)
            return batch
        except Qua2SeDiMoError as error:
            if error.__cause__ is None or not is_out_of_memory(error.__cause__):
                raise
        release_memory()  # outside the handler, whose traceback holds the tensors of the failed call
        if batch == 1:
            raise out_of_memory("not even one image fits into memory")
        batch //= 2
