"""A pipeline's final latents, taken from its scheduler's last step.

They are the denoiser's own result, before any autoencoder. ``scheduler.step`` is observed, so that pipelines need no
callback. Of a film that is made in pieces, they are those of the last piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError

#: Positional arguments and keywords of a call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class FinalLatents:
    """The final latents of the pipeline calls made within :func:`final_latents`."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._calls: list[torch.Tensor | None] = []
        self._by_original = False

    def begin(self) -> None:
        self._calls.append(None)
        self._by_original = False

    def remember(self, sample: torch.Tensor, original: bool) -> None:
        """``original``: whether the pipeline's scheduler itself stepped, and not a copy. Copies may step in its place,
        or beside it, with the sound of a film."""
        if original or not self._by_original:
            self._calls[-1] = sample
        self._by_original = self._by_original or original

    def array(self, images: int) -> np.ndarray:
        """Latents float32 [images, ...] of all calls together.

        Some pipelines (DiT) step the guided and the unguided half of a batch together; both end equal, and the first is
        taken. Raises :class:`Qua2SeDiMoError` if the last steps did not give one sample per image.
        """
        ends = [call for call in self._calls if call is not None]
        rows = sum(len(end) for end in ends)
        if rows == 2 * images:
            ends = [end[: len(end) // 2] for end in ends]
        elif rows != images:
            raise Qua2SeDiMoError(
                f"{self._pipeline}: its scheduler ended with {rows} latents for {images} images",
                "Metric 'latent_mse' cannot be measured with this pipeline; leave it out.",
            )
        latents = np.concatenate([end.float().cpu().numpy() for end in ends])
        return np.nan_to_num(latents, nan=0.0, posinf=0.0, neginf=0.0)  # a ruined image can still be measured


@contextmanager
def final_latents(pipeline: Any) -> Iterator[FinalLatents]:
    """Record the pipeline's final latents while images are generated.

    Raises :class:`Qua2SeDiMoError` if the pipeline has no scheduler with steps.
    """
    scheduler: Any = getattr(pipeline, "scheduler", None)
    name = type(pipeline).__name__
    if not can_observe(pipeline):
        raise Qua2SeDiMoError(f"{name} has no scheduler whose steps give latents", "Leave out metric 'latent_mse'.")
    found = FinalLatents(name)

    def remember(result: Any, original: bool) -> None:
        found.remember(result[0] if isinstance(result, tuple) else result.prev_sample, original)

    def begin(*args: Any, **kwargs: Any) -> Arguments:
        found.begin()
        return args, kwargs

    with observed(scheduler, "step", after=remember), observed(pipeline, "__call__", before=begin):
        yield found


def can_observe(pipeline: Any) -> bool:
    """Whether the pipeline's scheduler has steps that :func:`final_latents` can observe."""
    scheduler = getattr(pipeline, "scheduler", None)
    return all(callable(getattr(scheduler, name, None)) for name in ("step", "set_timesteps"))


@contextmanager
def observed(
    thing: Any,
    name: str,
    before: Callable[..., Arguments] = lambda *args, **kwargs: (args, kwargs),
    after: Callable[[Any, bool], object] = lambda result, original: None,
) -> Iterator[None]:
    """Within, calls of a method of this object, and of copies that are made of it, are observed.

    ``before`` takes the method's arguments and gives those to call it with; ``after`` takes the result, and whether it
    is that of the object itself.
    """
    cls = type(thing)
    method = getattr(cls, name)

    @functools.wraps(method)  # pipelines read its signature
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = before(*args, **kwargs)
        result = method(self, *args, **kwargs)
        after(result, self is thing)
        return result

    # A subclass, not an attribute: pipelines copy their scheduler, and a copied attribute would call the original.
    named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, name: watched}
    thing.__class__ = type(cls.__name__, (cls,), named)
    try:
        yield
    finally:
        thing.__class__ = cls
