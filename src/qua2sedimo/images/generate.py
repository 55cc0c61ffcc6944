"""Generate a pipeline's images for given inputs, each from its own fixed noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError, Stopped, described, failed, failures_of
from qua2sedimo.images.draws import Draws
from qua2sedimo.images.own import parameters_of
from qua2sedimo.images.prompts import PromptMemory
from qua2sedimo.images.soundness import check_finite, check_informative
from qua2sedimo.system.memory import is_out_of_memory, within_memory
from qua2sedimo.system.notes import note

#: Images per pipeline call: the default, and the most that is tried.
BATCH = 16

#: Arguments by which pipelines are conditioned, in the order of preference, and the type of one input.
INPUTS: Mapping[str, type[str] | type[int]] = {"prompt": str, "class_labels": int}


#: The argument for the number of steps, and those that replace it by a list.
_STEPS, _SCHEDULES = "num_inference_steps", ("timesteps", "sigmas")

#: Names that pipelines give to pictures, to films, and to the sound beside them in what they return.
_PICTURES, _FILMS, _SOUNDS = ("images", "image", "rgb"), ("frames", "video"), ("audio", "sound")


@dataclass(frozen=True)
class Generation:
    """What to generate: ``inputs`` (prompts or class labels, cycled), pipeline arguments, and a seed.

    The noise of image i comes from a CPU generator seeded by (seed, i) alone, so it is the same for every
    configuration, batch size and device. PyTorch's global generators are seeded by (seed, i) too.
    """

    inputs: Sequence[str | int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch: int = BATCH

    def input(self, index: int) -> str | int | None:
        """Prompt or class label of image ``index``, None without inputs."""
        return self.inputs[index % len(self.inputs)] if self.inputs else None

    def number(self, *place: int) -> int:
        """A seed that is a function of the study's seed and ``place``, which begins with the image's index."""
        return int(np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)[0] >> 1)

    def noise(self, index: int) -> torch.Generator:
        """The CPU generator of image ``index``, the same for every configuration."""
        return torch.Generator("cpu").manual_seed(self.number(index))


class Generator:
    """Calls a diffusers pipeline for images ``start`` to ``stop`` of a :class:`Generation`.

    Prompt embeddings are computed once, unless they depend on a module among ``changing``: those whose weights change
    between calls. ``one_by_one`` becomes true when the pipeline draws from PyTorch's global generators, or from one of
    its generators more than from another, so that images of a batch would depend on each other, or when it takes no
    list of prompts or generators: each image then gets its own call.
    """

    def __init__(self, pipeline: Any, generation: Generation, changing: Iterable[nn.Module] = ()) -> None:
        self.pipeline, self.generation = pipeline, generation
        self.one_by_one = False
        self._takes_lists: bool | None = None  # unknown before the first call
        self._draws_known = False
        self._finite_only = False
        self._sound_told = False
        self._input_name = input_argument(pipeline)
        self._prompts = PromptMemory(changing)

    def __call__(self, start: int, stop: int, progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
        """Images as float32 [n, height, width, channels] in 0 to 1; the frames of a video are stacked vertically.

        Raises :class:`Qua2SeDiMoError` if the pipeline returns no images or too many, or a batch does not fit into
        memory.
        """
        images: list[np.ndarray] = []
        low = start
        while low < stop:
            indices = range(low, min(stop, low + self.batch))
            made = self._batch(indices)
            if made is None:
                continue
            images.append(made)
            low = indices.stop
            progress(low - start)
        return np.concatenate(images)

    def full_precision(self, start: int, stop: int) -> np.ndarray:
        """The same of the unquantized model, which configurations are compared with.

        Raises :class:`Qua2SeDiMoError` if an image is not finite, most have one colour, or noise has no effect.
        """
        self._finite_only = True
        try:
            with failures_of(type(self.pipeline).__name__):
                images = self(start, stop)
        finally:
            self._finite_only = False
        self.check_reference(images, start)
        return images

    def check_reference(self, images: np.ndarray, start: int) -> None:
        """Raise :class:`Qua2SeDiMoError` if nothing can be compared with these full-precision images from ``start``."""
        inputs = [self.generation.input(start + i) for i in range(len(images))]
        check_informative(images, inputs, type(self.pipeline).__name__)

    @property
    def batch(self) -> int:
        """Images per pipeline call."""
        return 1 if self.one_by_one else self.generation.batch

    def call_arguments(self, indices: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of the pipeline call that generates these images."""
        arguments = dict(self.generation.arguments)
        inputs, noise = map(self.generation.input, indices), map(self.generation.noise, indices)
        pack: Callable[[Iterator[Any]], Any] = next if self._takes_lists is False else list
        if self._input_name is not None and self.generation.inputs:
            arguments[self._input_name] = pack(inputs)
        if "batch_size" in parameters_of(self.pipeline):  # some take labels beside it
            arguments["batch_size"] = len(indices)
        return {**arguments, "generator": pack(noise), "output_type": "np"}

    def run(self, indices: Sequence[int], pipeline: Callable[..., Any] | None = None) -> Any:
        """The output of the pipeline, or of what is given in its place, called for these images.

        A pipeline that fails with lists is tried again with plain values, and one that draws from some of several
        generators more than from others with the first: the output is then of the first image only, and :attr:`batch`
        is 1 from now on.
        """
        pipeline = self.pipeline if pipeline is None else pipeline
        arguments, drawn = self.call_arguments(indices), Draws()
        watched = len(indices) > 1 and not self._draws_known
        try:
            with drawn if watched else nullcontext():
                output = pipeline(**arguments)
        except (Qua2SeDiMoError, Stopped):
            raise
        except Exception as error:
            if self._takes_lists is not None or is_out_of_memory(error):
                raise
            failure = error
        else:
            if len(indices) > 1:  # a list of one may pass where several do not
                self._takes_lists = self._takes_lists is not False
            self._draws_known = self._draws_known or watched
            if not (watched and drawn.differ(arguments["generator"])):
                return output
            self.one_by_one = True
            return pipeline(**self.call_arguments(indices[:1]))
        self._takes_lists = False
        try:
            output = pipeline(**self.call_arguments(indices[:1]))
        except Exception as error:
            self._takes_lists = None  # lists are not the only cause
            if is_out_of_memory(error) or isinstance(error, (Qua2SeDiMoError, Stopped)):
                raise
            if described(error) == described(failure):
                raise failure from error
            said = f"{described(error)} (with lists of inputs and generators: {described(failure)})"
            raise failed(type(pipeline).__name__, said, error) from error
        self.one_by_one = True
        return output

    @torch.no_grad()  # not inference mode: what offloading moves within would be barred from gradients afterwards
    def _batch(self, indices: Sequence[int]) -> np.ndarray | None:
        """The images of one call; None if they must be made again, one by one."""
        took_lists, alone = self._takes_lists, self.one_by_one
        seeded = _seeded(self.generation.number(indices[0], 1))
        with self._prompts.remembering(self.pipeline), without_safety_checker(self.pipeline), seeded as drew:
            with within_memory(f"{len(indices)} images at once do not fit into memory"):
                output = self.run(indices)
            self.one_by_one = self.one_by_one or (drew() and len(indices) > 1)
        again = self._takes_lists is False and took_lists is None  # what failed may have drawn from a global generator
        if again or self.one_by_one != alone:
            return None
        images = pictures(self.pipeline, output)
        if len(images) > len(indices) and "video_length" in parameters_of(self.pipeline):
            images = images.reshape(len(indices), -1, *images.shape[2:])  # the frames were returned as images
        if len(images) != len(indices):
            raise Qua2SeDiMoError(
                f"{type(self.pipeline).__name__} returned {len(images)} images for {len(indices)} inputs",
                "Leave arguments that multiply images, such as num_images_per_prompt, out of 'arguments'.",
            )
        if self._finite_only:
            check_finite(images, type(self.pipeline).__name__)
            self._tell_of_sound(output)
        elif not np.isfinite(images).all():
            images = np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0)  # a ruined image can still be measured
        return np.ascontiguousarray(images)  # safetensors ignores strides

    def _tell_of_sound(self, output: Any) -> None:
        """Say once that a sound is compared with nothing: what only it depends on seems to cost no quality."""
        if self._sound_told or all(getattr(output, name, None) is None for name in _SOUNDS):
            return
        self._sound_told = True
        note(
            f"{type(self.pipeline).__name__} makes sound too, which is not compared: layers that only the sound needs "
            "get the fewest bits. Keep them in more if you want it, for example with --min-bits '*audio*=8'."
        )


def pictures(pipeline: Any, output: Any) -> np.ndarray:
    """A pipeline's output as float32 [n, height, width, channels]; videos as [n, frames · height, …].

    Raises :class:`Qua2SeDiMoError` if it has neither pictures nor films.
    """
    name = type(pipeline).__name__
    key = next((key for key in (*_PICTURES, *_FILMS) if getattr(output, key, None) is not None), "")
    found = getattr(output, key, None)
    if found is None:
        given = ", ".join(output.keys()) if hasattr(output, "keys") else type(output).__name__
        raise Qua2SeDiMoError(
            f"{name} returns {given}, no images",
            "Use the pipeline that returns images, and select the denoiser with --component.",
        )
    if any(isinstance(image, torch.Tensor) for image in found):
        raise Qua2SeDiMoError(f"{name} returns tensors", "Remove return_dict and output_type from 'arguments'.")
    images = np.asarray(found, dtype=np.float32)
    if key in _FILMS:
        images = images[None] if key == "video" and images.ndim == 4 else images  # there is one
        if images.ndim != 5:
            raise Qua2SeDiMoError(f"{name} returns frames of shape {images.shape}, not [n, frames, h, w, channels]")
        return images.reshape(len(images), -1, *images.shape[3:])
    return images[..., None] if images.ndim == 3 else images


def has_safety_checker(pipeline: Any) -> bool:
    """Whether the pipeline has a safety checker, which replaces images that it flags with black ones."""
    return getattr(pipeline, "safety_checker", None) is not None


@contextmanager
def without_safety_checker(pipeline: Any) -> Iterator[None]:
    """Disable the pipeline's safety checker: a black image says nothing about a configuration's quality.

    The pipeline's configuration, which is exported, still names the checker.
    """
    checker = getattr(pipeline, "safety_checker", None)
    if checker is None:
        yield
        return
    # Bypasses the pipeline's __setattr__, which would remove the checker from its configuration.
    vars(pipeline)["safety_checker"] = None
    try:
        yield
    finally:
        vars(pipeline)["safety_checker"] = checker


@contextmanager
def _seeded(seed: int) -> Iterator[Callable[[], bool]]:
    """Seed PyTorch's global generators; yields a function that returns whether any was used since.

    Some schedulers use them even if they are given a generator, and some pipelines pass no generator on.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        before = _global_states()
        yield lambda: any(not torch.equal(a, b) for a, b in zip(before, _global_states()))


def _global_states() -> list[torch.Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *devices]


def input_argument(pipeline: Any) -> str | None:
    """The pipeline's conditioning argument: ``prompt``, ``class_labels``, or None (unconditional)."""
    parameters = parameters_of(pipeline)
    name = next((name for name in INPUTS if name in parameters), None)
    return None if name == "class_labels" and _ignores_labels(pipeline) else name


def _ignores_labels(pipeline: Any) -> bool:
    """Whether a pipeline that takes class labels optionally has a denoiser that was made without any."""
    config = getattr(getattr(pipeline, "unet", None), "config", {})
    return "num_class_embeds" in config and config["num_class_embeds"] is None


def steps_of(pipeline: Any, arguments: Mapping[str, Any]) -> int | None:
    """Steps that an image takes, by the arguments or the pipeline's default; None where it is not told by a number."""
    parameters = parameters_of(pipeline)
    if _STEPS not in parameters or any(arguments.get(name) is not None for name in _SCHEDULES):
        return None
    default = parameters[_STEPS].default
    found = arguments.get(_STEPS, default)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def in_steps(pipeline: Any, arguments: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The arguments for images in at most so many steps; unchanged where steps are not told by a number."""
    steps = steps_of(pipeline, arguments)
    return arguments if steps is None or steps <= most else {**arguments, _STEPS: most}


def check_inputs(pipeline: Any, inputs: Sequence[str | int]) -> None:
    """Raise :class:`Qua2SeDiMoError` unless the inputs are of the type the pipeline takes."""
    name = input_argument(pipeline)
    if name is None:
        if inputs:
            raise Qua2SeDiMoError(f"{type(pipeline).__name__} takes no prompts, got {len(inputs)}")
        return
    if not inputs:
        raise Qua2SeDiMoError(
            f"{type(pipeline).__name__} needs inputs: {name}", "Give --prompt, or 'inputs:' in study.yaml."
        )
    for value in inputs:
        if not isinstance(value, INPUTS[name]):
            raise Qua2SeDiMoError(f"input {value!r}: {name} must be {INPUTS[name].__name__}")


def check_arguments(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`Qua2SeDiMoError` unless the pipeline takes these arguments, a generator and an output type, and
    needs no others."""
    name = type(pipeline).__name__
    parameters = parameters_of(pipeline)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for argument in arguments:
        if argument not in parameters:
            raise Qua2SeDiMoError(f"{name} takes no argument '{argument}'", f"It takes: {', '.join(parameters)}.")
    for argument in ("generator", "output_type"):
        if argument not in parameters:
            raise Qua2SeDiMoError(
                f"{name} takes no '{argument}': its noise cannot be fixed, or its images not be returned as arrays",
                "Only pipelines that take 'generator' and 'output_type' can be studied.",
            )
    given = {*arguments, input_argument(pipeline)}
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise Qua2SeDiMoError(
            f"{name} requires '{missing[0]}', which a study does not pass",
            "Add it to 'arguments:' if it is a plain value; pipelines that need an input image cannot be studied.",
        )
