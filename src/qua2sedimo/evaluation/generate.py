"""Images of a pipeline for given inputs, each from its own fixed noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError


@dataclass(frozen=True)
class Generation:
    """What to generate: ``inputs`` (prompts or class labels, reused in turn), pipeline arguments, and a seed.

    The noise of image i comes from a CPU generator seeded by (seed, i) alone, so it is the same for every
    configuration, batch size and device.
    """

    inputs: Sequence[str | int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch: int = 16

    def input(self, index: int) -> str | int | None:
        return self.inputs[index % len(self.inputs)] if self.inputs else None

    def noise(self, index: int) -> torch.Generator:
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator("cpu").manual_seed(seed)


class Generator:
    """Calls a diffusers pipeline for images ``start`` to ``stop`` of a :class:`Generation`."""

    def __init__(self, pipeline: Any, generation: Generation) -> None:
        self.pipeline, self.generation = pipeline, generation
        self._input_name = input_argument(pipeline)

    def __call__(self, start: int, stop: int, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Images as float32 [n, height, width, channels] in 0 to 1."""
        images = []
        for low in range(start, stop, self.generation.batch):
            indices = range(low, min(stop, low + self.generation.batch))
            images.append(self._batch(indices))
            progress(indices[-1] + 1 - start)
        return np.concatenate(images)

    def call_arguments(self, indices: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of the pipeline call that makes these images."""
        arguments = dict(self.generation.arguments)
        if self._input_name is not None:
            arguments[self._input_name] = [self.generation.input(i) for i in indices]
        elif len(indices) > 1 or "batch_size" in inspect.signature(self.pipeline.__call__).parameters:
            arguments["batch_size"] = len(indices)
        return {
            **arguments,
            "generator": [self.generation.noise(i) for i in indices],
            "output_type": "np",
        }

    @torch.inference_mode()
    def _batch(self, indices: Sequence[int]) -> np.ndarray:
        images = np.asarray(self.pipeline(**self.call_arguments(indices)).images, dtype=np.float32)
        if images.ndim == 3:
            images = images[..., None]
        if not np.isfinite(images).all():
            images = np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0)  # a ruined picture, still a picture
        return np.ascontiguousarray(images)  # safetensors stores memory, whatever the strides


def input_argument(pipeline: Any) -> str | None:
    """How the pipeline is told what to paint: ``prompt``, ``class_labels``, or nothing (unconditional)."""
    parameters = inspect.signature(pipeline.__call__).parameters
    return next((name for name in ("prompt", "class_labels") if name in parameters), None)


def check_inputs(pipeline: Any, inputs: Sequence[str | int]) -> None:
    """Raise unless the inputs are of the kind the pipeline takes."""
    name = input_argument(pipeline)
    expected = {"prompt": str, "class_labels": int, None: None}[name]
    if expected is None and inputs:
        raise Qua2SeDiMoError(f"{type(pipeline).__name__} takes no prompts, got {len(inputs)}")
    if expected is not None and not inputs:
        raise Qua2SeDiMoError(
            f"{type(pipeline).__name__} needs inputs: {name}", "Give --prompt, or 'inputs:' in study.yaml."
        )
    for value in inputs:
        if expected is not None and not isinstance(value, expected):
            raise Qua2SeDiMoError(f"input {value!r}: {name} must be {expected.__name__}")


def check_arguments(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """Raise unless the pipeline takes every argument."""
    parameters = inspect.signature(pipeline.__call__).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in arguments:
        if name not in parameters:
            raise Qua2SeDiMoError(
                f"{type(pipeline).__name__} takes no argument '{name}'", f"It takes: {', '.join(parameters)}."
            )
