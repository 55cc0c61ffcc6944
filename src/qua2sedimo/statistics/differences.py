"""What a change of the denoiser's weights does to its guided output, measured by running recorded calls again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qua2sedimo.statistics.calls import RecordedCall


class OutputDifference:
    """Runs calls of a denoiser, of one image each, and compares the guided output with what it was at first.

    Needs forward passes only, and holds for errors of any size. A call's cotangent is the derivative of the guided
    output times random signs, the same in all samples that guide one image: the sum over these of cotangent × change
    is the change of the guided output times its signs.
    """

    def __init__(self, denoiser: nn.Module, calls: Sequence[RecordedCall]) -> None:
        """Runs all calls; ``denoiser`` has its original weights now."""
        self._denoiser, self._calls = denoiser, list[tuple[RecordedCall, list[torch.Tensor], float]]()
        for number, whole in enumerate(calls):
            call = whole.of_image(number)
            with torch.no_grad():
                self._calls.append((call, call.run(denoiser), whole.samples / call.samples))

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        """The squared change of the guided output, summed up over its entries and, as if all images of a call were like
        its one, over these: fp64 [calls]."""
        return torch.tensor(
            [images * _squared(call, call.run(self._denoiser), before) for call, before, images in self._calls],
            dtype=torch.float64,
        )


def _squared(call: RecordedCall, now: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> float:
    changes = [
        (g.to(a.device, torch.float32) * (a.float() - b.to(a.device).float())).sum(dim=0)
        for g, a, b in zip(call.cotangents, now, before, strict=True)
    ]
    return sum(float(change.double().square().sum()) for change in changes)
