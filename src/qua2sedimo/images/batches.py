"""How many images at once: as many as fit into memory, found by trying."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import Generation, Generator, is_out_of_memory

_STEPS = 2  # memory is that of one step; the second finds what a first keeps alive


def fitting_batch(pipeline: Any, generation: Generation, most: int) -> int:
    """The largest of ``most``, ``most``/2, … 1 images that the pipeline makes at once without running out of memory.

    Few steps are made where the pipeline counts steps: memory is the same. Raises :class:`Qua2SeDiMoError` if not even
    one image fits.
    """
    arguments = dict(generation.arguments)
    if "num_inference_steps" in inspect.signature(pipeline.__call__).parameters:
        arguments["num_inference_steps"] = min(_STEPS, arguments.get("num_inference_steps", _STEPS))

    def attempt(batch: int) -> None:
        Generator(pipeline, replace(generation, arguments=arguments, batch=batch))(0, batch)

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
        gc.collect()  # outside the handler, whose traceback holds the tensors of the failed call
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch == 1:
            raise Qua2SeDiMoError("not even one image fits into memory", "Ask for smaller images, or a larger machine.")
        batch //= 2
