"""Images of a pipeline for given inputs, each from its own fixed noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.prompts import PromptMemory

#: Images a call of the pipeline by default, and the most that are tried.
BATCH = 16


@dataclass(frozen=True)
class Generation:
    """What to generate: ``inputs`` (prompts or class labels, reused in turn), pipeline arguments, and a seed.

    The noise of image i comes from a CPU generator seeded by (seed, i) alone, so it is the same for every
    configuration, batch size and device. Numbers that a pipeline draws from PyTorch's global generators are seeded by
    (seed, i) too.
    """

    inputs: Sequence[str | int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch: int = BATCH

    def input(self, index: int) -> str | int | None:
        """Prompt or class of image ``index``; the inputs are taken in turn. None if there are none."""
        return self.inputs[index % len(self.inputs)] if self.inputs else None

    def number(self, *place: int) -> int:
        """The seed of what is drawn for image ``place``."""
        return int(np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)[0] >> 1)

    def noise(self, index: int) -> torch.Generator:
        """The CPU generator of image ``index``: the same for every configuration."""
        return torch.Generator("cpu").manual_seed(self.number(index))


class Generator:
    """Calls a diffusers pipeline for images ``start`` to ``stop`` of a :class:`Generation`.

    What does not depend on the denoiser is computed once: the prompts' embeddings. ``one_by_one`` becomes true once the
    pipeline is seen to draw from PyTorch's global generators: in a batch its images would depend on each other, so each
    is made by a call of its own.
    """

    def __init__(self, pipeline: Any, generation: Generation) -> None:
        self.pipeline, self.generation = pipeline, generation
        self.one_by_one = False
        self._input_name = input_argument(pipeline)
        self._prompts = PromptMemory()

    def __call__(self, start: int, stop: int, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Images as float32 [n, height, width, channels] in 0 to 1; the frames of a film stand one below the other.

        Raises :class:`Qua2SeDiMoError` if the pipeline gives no images, another number of them than asked for, or a
        batch does not fit into memory.
        """
        images: list[np.ndarray] = []
        low = start
        while low < stop:
            indices = range(low, min(stop, low + self.batch))
            made, drew = self._batch(indices)
            if drew and len(indices) > 1:
                self.one_by_one = True
                continue
            images.append(made)
            low = indices.stop
            progress(low - start)
        return np.concatenate(images)

    @property
    def batch(self) -> int:
        """Images a call of the pipeline."""
        return 1 if self.one_by_one else self.generation.batch

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
    def _batch(self, indices: Sequence[int]) -> tuple[np.ndarray, bool]:
        """The images of one call, and whether it drew from a global generator."""
        seeded = _seeded(self.generation.number(indices[0], 1))
        with self._prompts.remembering(self.pipeline), without_safety_checker(self.pipeline), seeded as drew:
            try:
                output = self.pipeline(**self.call_arguments(indices))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise Qua2SeDiMoError(
                    f"{len(indices)} images at once do not fit into memory",
                    "Set a smaller 'batch:' in study.yaml. Numbers depend on it only by rounding.",
                ) from error
            drawn = drew()
        images = pictures(self.pipeline, output)
        if len(images) != len(indices):
            raise Qua2SeDiMoError(
                f"{type(self.pipeline).__name__} made {len(images)} images where {len(indices)} were asked for",
                "Leave arguments that multiply images, such as num_images_per_prompt, out of 'arguments'.",
            )
        if not np.isfinite(images).all():
            images = np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0)  # a ruined picture, still a picture
        return np.ascontiguousarray(images), drawn  # safetensors stores memory, whatever the strides


def pictures(pipeline: Any, output: Any) -> np.ndarray:
    """Images float32 [n, height, width, channels] of what a pipeline returned; films [n, frames · height, …].

    Raises :class:`Qua2SeDiMoError` if it returned neither ``images`` nor ``frames``.
    """
    name = type(pipeline).__name__
    found = getattr(output, "images", None)
    film = found is None
    found = getattr(output, "frames", None) if film else found
    if found is None:
        given = ", ".join(output.keys()) if hasattr(output, "keys") else type(output).__name__
        raise Qua2SeDiMoError(
            f"{name} gives {given}, no images", "Study the pipeline that paints, and name the denoiser by --component."
        )
    if any(isinstance(image, torch.Tensor) for image in found):
        raise Qua2SeDiMoError(f"{name} gives tensors, not pictures", "Leave return_dict and output_type to the study.")
    images = np.asarray(found, dtype=np.float32)
    if film:
        if images.ndim != 5:
            raise Qua2SeDiMoError(f"{name} gives frames of shape {images.shape}; expected [n, frames, h, w, channels]")
        return images.reshape(len(images), -1, *images.shape[3:])
    return images[..., None] if images.ndim == 3 else images


def has_safety_checker(pipeline: Any) -> bool:
    """Whether the pipeline judges its pictures, and gives black ones in place of those it takes offence at."""
    return getattr(pipeline, "safety_checker", None) is not None


@contextmanager
def without_safety_checker(pipeline: Any) -> Iterator[None]:
    """Switch off the pipeline's safety checker meanwhile: a black picture says nothing of a configuration's quality.

    The pipeline's configuration, which is what is exported, names it all the while.
    """
    checker = getattr(pipeline, "safety_checker", None)
    if checker is None:
        yield
        return
    # Past the pipeline's own __setattr__, which would take the checker out of its configuration.
    vars(pipeline)["safety_checker"] = None
    try:
        yield
    finally:
        vars(pipeline)["safety_checker"] = checker


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


@contextmanager
def _seeded(seed: int) -> Iterator[Callable[[], bool]]:
    """Seed the global random numbers meanwhile; what is yielded says whether any were drawn since.

    Some schedulers draw from them whatever generator they are given, and some pipelines pass none on.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        before = _global_states()
        yield lambda: any(not torch.equal(a, b) for a, b in zip(before, _global_states()))


def _global_states() -> list[torch.Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *devices]


def input_argument(pipeline: Any) -> str | None:
    """The argument that says what to paint: ``prompt``, ``class_labels``, or nothing (unconditional)."""
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
    """Raise unless the pipeline takes every argument, has all it must have, and can be given noise and a batch."""
    name = type(pipeline).__name__
    parameters = inspect.signature(pipeline.__call__).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for argument in arguments:
        if argument not in parameters:
            raise Qua2SeDiMoError(f"{name} takes no argument '{argument}'", f"It takes: {', '.join(parameters)}.")
    for argument in ("generator", "output_type"):
        if argument not in parameters:
            raise Qua2SeDiMoError(
                f"{name} takes no '{argument}': the noise of its images cannot be fixed, or they come as no arrays",
                "Only pipelines that take both can be studied.",
            )
    given = {*arguments, input_argument(pipeline)}
    missing = [
        p.name for p in parameters.values() if p.default is inspect.Parameter.empty and p.name not in given
    ]  # fmt: skip
    if missing:
        raise Qua2SeDiMoError(
            f"{name} must be given '{missing[0]}', which a study does not have",
            "Put it in 'arguments:' if it is a plain value; pipelines that start from pictures cannot be studied.",
        )
