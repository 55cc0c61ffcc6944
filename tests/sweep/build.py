"""A tiny pipeline from its class: each component by the annotation in the constructor, with small sizes that agree."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import schedulers
from diffusers.utils import is_ftfy_available
from tests.conftest import randomized
from tests.denoisers.coverage.registry import CONFIGURATIONS
from tests.sweep.autoencoders import AUTOENCODERS
from tests.sweep.texts import ENCODERS, TOKENIZERS, WIDTH

#: Components that pipelines work without.
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "watermarker", "image_processor")


@dataclass(frozen=True)
class Tiny:
    """A tiny instance of a pipeline class.

    ``parts``: component → its class's name, or a function that makes it; others are made by annotation, and what has
    None as its default is left out unless named. ``sizes``: component → arguments that differ from those of
    tests/denoisers/coverage and :mod:`tests.sweep.autoencoders`. ``width``: channels of text encoders, all the same or
    by component. ``arguments``: of the pipeline's call. ``inputs``: prompts or labels.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, str | Callable[[], Any] | None] = field(default_factory=dict)
    width: int | Mapping[str, int] = WIDTH
    inputs: tuple[Any, ...] = ("a red fox", "a harbour at dusk")
    more: Mapping[str, Any] = field(default_factory=dict)


def tiny(
    arguments: Mapping[str, Any], *, parts: Mapping[str, Any] | None = None, width: Any = WIDTH,
    inputs: tuple[Any, ...] = ("a red fox", "a harbour at dusk"), more: Mapping[str, Any] | None = None,
    **sizes: Mapping[str, Any],
) -> Tiny:  # fmt: skip
    return Tiny(arguments, sizes, parts or {}, width, inputs, more or {})


def built(cls: type[Any], entry: Tiny) -> Any:
    """The pipeline with random weights; those of denoisers are exact in 16 bits, so that an export holds them all."""
    _stand_in_for_ftfy(cls)
    torch.manual_seed(0)
    given: dict[str, Any] = dict(entry.more)
    parameters = inspect.signature(cls.__init__, eval_str=True).parameters
    for name, parameter in parameters.items():
        if name == "self" or name in given:
            continue
        chosen = name in entry.parts or name in entry.sizes
        if name.removeprefix("prior_") in _LEFT_OUT and not chosen:
            given[name] = None
        elif chosen or parameter.default is parameter.empty:
            given[name] = _component(name, entry.parts.get(name, _annotated(parameter.annotation)), entry)
    if "requires_safety_checker" in parameters:
        given["requires_safety_checker"] = False
    pipeline = cls(**given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _stand_in_for_ftfy(cls: type[Any]) -> None:
    """Some pipelines clean prompts with ftfy, which is not installed; the prompts of these tests need no cleaning."""
    module = sys.modules[cls.__module__]
    if not is_ftfy_available() and not hasattr(module, "ftfy"):
        module.ftfy = SimpleNamespace(fix_text=lambda text: text)  # type: ignore[attr-defined]


def _annotated(annotation: Any) -> Any:
    """The class, or the first of several, that a constructor names; None if it names none."""
    if inspect.isclass(annotation):
        return annotation
    options = [one for one in getattr(annotation, "__args__", ()) if one is not type(None)]
    return _annotated(options[0]) if options else None


def _component(name: str, part: Any, entry: Tiny) -> Any:
    if part is None or inspect.isfunction(part):
        return part() if part is not None else None
    if isinstance(part, str):
        known = next(module for module in (diffusers, transformers, schedulers) if hasattr(module, part))
        part = getattr(known, part)
    sizes, kind = dict(entry.sizes.get(name, {})), part.__name__
    if kind in TOKENIZERS:
        return TOKENIZERS[kind]()
    if kind in ENCODERS:
        width = entry.width if isinstance(entry.width, int) else entry.width.get(name, WIDTH)
        return randomized(ENCODERS[kind](part, width, **sizes), seed=1)
    if kind in AUTOENCODERS:
        return part(**{**AUTOENCODERS[kind], **sizes}).eval().requires_grad_(False)
    if kind in CONFIGURATIONS:
        return halved(randomized(part(**{**CONFIGURATIONS[kind].arguments, **sizes}), seed=2))
    if kind == "KarrasDiffusionSchedulers":
        return diffusers.DDIMScheduler(**sizes)
    made = part(**sizes)
    return randomized(made, seed=3) if isinstance(made, torch.nn.Module) else made


def halved(model: Any) -> Any:
    """The model with every parameter rounded to 16 bits, in fp32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model
