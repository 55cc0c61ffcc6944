"""A cache of prompt embeddings: they are the same for every configuration, unless the text encoder is quantized."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

#: Size limit of the cache in bytes; further prompts are encoded at every call.
MOST_BYTES = 512 * 2**20


class PromptMemory:
    """Caches the results of a pipeline's ``encode_prompt`` by its arguments, if these are plain values.

    Every call gets its own copy, so that a pipeline may modify it in place. Once a module among ``changing``, those
    whose weights change between calls, or a part of one, is called within ``encode_prompt``, nothing is cached.
    """

    def __init__(self, changing: Iterable[nn.Module] = (), most_bytes: int = MOST_BYTES) -> None:
        self._known: dict[Any, Any] = {}
        self._left = most_bytes
        self._changing = {id(module) for root in changing for module in root.modules()}
        self._depends = False

    @contextmanager
    def remembering(self, pipeline: Any) -> Iterator[None]:
        """Within the context, the pipeline's ``encode_prompt``, if it has one, uses the cache."""
        encode = getattr(pipeline, "encode_prompt", None)
        if not callable(encode) or "encode_prompt" in vars(pipeline):
            yield
            return
        pipeline.encode_prompt = self._remembered(encode)
        try:
            yield
        finally:
            del pipeline.encode_prompt

    def _remembered(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(encode)
        def answer(*args: Any, **kwargs: Any) -> Any:
            if self._depends:
                return encode(*args, **kwargs)
            try:
                key = (_plain(args), _plain(kwargs))
            except TypeError:
                return encode(*args, **kwargs)
            if key in self._known:
                return _copied(self._known[key])
            with self._watched() as changes:
                result = encode(*args, **kwargs)
            if changes():
                return result
            try:
                nbytes = _size(result)
            except TypeError:  # not only tensors: not cached
                return result
            if nbytes <= self._left:
                self._known[key] = _copied(result)
                self._left -= nbytes
            return result

        return answer

    @contextmanager
    def _watched(self) -> Iterator[Callable[[], bool]]:
        """Within, a call of a module that changes is noticed; yields a function that returns whether one ever was."""

        def called(module: nn.Module, _: Any) -> None:
            self._depends = self._depends or id(module) in self._changing

        handle = register_module_forward_pre_hook(called) if self._changing else None
        try:
            yield lambda: self._depends
        finally:
            if handle is not None:
                handle.remove()


def _plain(value: Any) -> Any:
    """A hashable key for arguments; TypeError if they contain anything but plain values."""
    if value is None or isinstance(value, (str, int, float, bool, torch.device, torch.dtype)):
        return (type(value).__name__, value)
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    if isinstance(value, dict):
        return tuple((name, _plain(v)) for name, v in sorted(value.items()))
    raise TypeError(type(value).__name__)


def _copied(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.clone()
    return type(result)(map(_copied, result)) if isinstance(result, (list, tuple)) else result


def _size(result: Any) -> int:
    if isinstance(result, torch.Tensor):
        return result.numel() * result.element_size()
    if result is None:
        return 0
    if type(result) in (list, tuple):
        return sum(map(_size, result))
    raise TypeError(type(result).__name__)
