"""Any denoiser with a function that makes images from noise, in place of a diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError

#: ``generate(inputs, generators, **arguments)`` → images [n, height, width, channels] in 0 to 1.
Generate = Callable[..., Any]


@dataclass(frozen=True)
class Images:
    """What a pipeline's call returns."""

    images: np.ndarray


class CallablePipeline:
    """A denoiser and the function that makes images with it: what :class:`~qua2sedimo.Study` and ``quantize`` take in
    place of a diffusers pipeline.

    ``denoiser`` is any module with Linear or Conv layers. ``generate(inputs, generators, **arguments)`` calls it and
    returns one image per generator: floats [n, height, width, channels] in 0 to 1, as an array or a tensor; all its
    noise comes from these ``torch.Generator`` on the CPU, one per image. ``inputs`` has a prompt or a class label per
    image, as ``conditioned_by`` says; it is None for an unconditional denoiser.
    """

    #: The component that is quantized, as in a diffusers pipeline.
    denoiser: nn.Module

    def __init__(
        self,
        denoiser: nn.Module,
        generate: Generate,
        conditioned_by: Literal["prompt", "class_labels"] | None = "prompt",
    ) -> None:
        self.denoiser, self.generate, self.conditioned_by = denoiser.eval(), generate, conditioned_by
        self.config: Mapping[str, Any] = {}

    @property
    def components(self) -> dict[str, Any]:
        return {"denoiser": self.denoiser}

    @property
    def device(self) -> torch.device:
        """The device of the denoiser."""
        return next(self.denoiser.parameters()).device

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments of a call, as the signature of a diffusers pipeline would give them."""
        own = list(inspect.signature(self.generate).parameters.values())[2:]
        kind = inspect.Parameter.KEYWORD_ONLY
        names = ["generator", "output_type", *([self.conditioned_by] if self.conditioned_by else [])]
        return {name: inspect.Parameter(name, kind, default=None) for name in names} | {p.name: p for p in own}

    def __call__(self, generator: Any, output_type: str = "np", **arguments: Any) -> Images:
        """Images for a list of generators; raises :class:`Qua2SeDiMoError` if ``generate`` returns anything else."""
        inputs = arguments.pop(self.conditioned_by, None) if self.conditioned_by else None
        generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
        if inputs is not None and not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
        made = self.generate(inputs, generators, **arguments)
        images = made.detach().float().cpu().numpy() if isinstance(made, torch.Tensor) else np.asarray(made)
        if images.ndim != 4 or len(images) != len(generators) or images.shape[-1] not in (1, 3, 4):
            raise Qua2SeDiMoError(
                f"generate returned an array of shape {list(images.shape)} for {len(generators)} generators",
                "Return one image for each: [n, height, width, channels], floats in 0 to 1.",
            )
        return Images(images.astype(np.float32))


def parameters_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call by name."""
    if isinstance(pipeline, CallablePipeline):
        return pipeline.parameters
    return inspect.signature(pipeline.__call__).parameters
