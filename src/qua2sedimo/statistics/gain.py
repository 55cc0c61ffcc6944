"""How much a change of the denoiser's guided output changes the decoded picture: one unit for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers.components import as_called
from qua2sedimo.images.generate import Generator, without_safety_checker
from qua2sedimo.images.latents import Arguments, can_observe, observed

#: The change of the guided output, as a share of its root mean square: small, but above the rounding of bf16.
_SHARE = 0.02


@torch.no_grad()
def picture_gain(generator: Generator, decoder: nn.Module, images: Sequence[int]) -> float:
    """|ΔP|² / mean over steps of |Δg|²: the squared change of what ``decoder`` makes for that of the guided output g.

    Every step gets the same random signs: what quantized weights get wrong in one step, they get wrong alike in the
    next (docs/method.md compares). Over images it is the geometric mean, as of PSNR: in single ones a small change
    early in sampling makes another picture. 1 where steps cannot be observed, or do not reach the picture.
    """
    if not can_observe(generator.pipeline):
        return 1.0
    plain, _ = _decoded(generator, decoder, images, share=0.0)
    changed, squares = _decoded(generator, decoder, images, share=_SHARE)
    if len(plain) != len(changed) or not squares or sum(squares) == 0:
        return 1.0
    changes = torch.cat([(a - b).double().flatten(1).square().sum(dim=1) for a, b in zip(changed, plain)])
    gain = float(changes.log().mean().exp()) * len(changes) / (sum(squares) / len(squares))
    return gain if math.isfinite(gain) and gain > 0 else 1.0


def _decoded(
    generator: Generator, decoder: nn.Module, images: Sequence[int], share: float
) -> tuple[list[torch.Tensor], list[float]]:
    """(what the decoder made, squared change of the guided output in every step)."""
    pipeline, chance = generator.pipeline, torch.Generator().manual_seed(0)
    signs: dict[torch.Size, torch.Tensor] = {}
    made: list[torch.Tensor] = []
    squares: list[float] = []

    def stepped(guided: Any, *args: Any, **kwargs: Any) -> Arguments:
        if torch.is_tensor(guided) and share:
            if guided.shape not in signs:
                signs[guided.shape] = torch.randint(0, 2, guided.shape, generator=chance) * 2.0 - 1.0
            size = share * guided.float().square().mean().sqrt()
            guided, before = guided + (size * signs[guided.shape].to(guided.device)).to(guided.dtype), guided
            squares.append(float((guided - before).double().square().sum()))
        return (guided, *args), kwargs

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        picture = output[0]  # a tuple, or an output class, which is one too
        if torch.is_tensor(picture):
            made.append(picture.detach().float().cpu())

    torch.manual_seed(generator.generation.number(images[0], 1))
    hook = decoder.register_forward_hook(keep)
    try:
        with (
            as_called(decoder),
            observed(pipeline.scheduler, "step", before=stepped),
            without_safety_checker(pipeline),
            torch.random.fork_rng(range(torch.cuda.device_count())),
        ):
            generator.run(images)
    finally:
        hook.remove()
    return made, squares
