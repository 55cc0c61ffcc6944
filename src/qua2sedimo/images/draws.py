"""How many random numbers a pipeline draws from each generator that it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Draws(TorchFunctionMode):
    """Within, the numbers that torch draws from each generator are counted.

    Some pipelines take a list of generators, one for each image, and use only the first, or draw noise for all images
    from it: an image then depends on the others of its batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: Counter[int] = Counter()

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result, generator = function(*args, **kwargs), kwargs.get("generator")
        if isinstance(generator, torch.Generator) and isinstance(result, torch.Tensor):
            self._numbers[id(generator)] += result.numel()
        return result

    def differ(self, generators: Sequence[torch.Generator]) -> bool:
        """Whether more was drawn from one of the generators than from another."""
        return len({self._numbers[id(generator)] for generator in generators}) > 1
