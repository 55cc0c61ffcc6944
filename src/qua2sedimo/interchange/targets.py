"""What a study may choose if its result is for another program: ``target`` in study.yaml, ``--for`` of commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.interchange.sdnq import form_of, layers_kept
from qua2sedimo.options import Option, SearchSpace, shapes_text, small_layers
from qua2sedimo.quantizers import GGUF_METHODS

Shape = tuple[int, ...]
_HALF = Option("half", 16)


@dataclass(frozen=True)
class Target:
    """``default``: the option set in place of ``default``; ``holds``: whether the format holds an option of a whole
    layer in the bytes that it takes here; ``needs``: what layers must be like, for an error's remedy; ``keeps``: the
    modules of a model that it cannot hold quantized, whatever their option."""

    default: str
    holds: Callable[[Option, Shape, torch.dtype], bool]
    needs: str
    keeps: Callable[[nn.Module], set[str]] = lambda model: set()


def _in_sdnq(option: Option, shape: Shape, dtype: torch.dtype) -> bool:
    form = form_of(option, shape, dtype)
    return form.kind != "plain" and form.nbytes == option.nbytes(shape)


def _in_gguf(option: Option, shape: Shape, dtype: torch.dtype) -> bool:
    """Readers expect blocks in Linear layers alone: the rows of a convolution have the length of its kernel."""
    known = option == _HALF or any(option.method == method.name for method in GGUF_METHODS)
    return known and len(shape) == 2


_TARGETS: Mapping[str, Target] = {
    "sdnq": Target("wide", _in_sdnq, "Choose other options with --options.", layers_kept),
    "gguf": Target(
        "gguf",
        _in_gguf,
        "Its types hold Linear layers whose rows are a multiple of 32 weights, or of 256 (the K types). Choose among "
        "them with --options, such as gguf_k-4,gguf_0-4.",
    ),
}


def kept_for(target: str, model: nn.Module) -> set[str]:
    """Modules of a denoiser or text encoder that stay in 16 bits in the target's format."""
    return _TARGETS[target].keeps(model)


def space_for(target: str, shapes: Mapping[str, Shape], option_set: str, dtype: torch.dtype) -> SearchSpace:
    """The options of a set that the target's format holds, for weights of a 16-bit type.

    A layer that it holds in none of them, or only as it is, is left out, and so stays in 16 bits. Among the options of
    ``default``, 16 bits are left to the smallest layers. Raises :class:`Qua2SeDiMoError` naming the layers if none is
    left.
    """
    known, usual = _TARGETS[target], option_set == "default"
    space = SearchSpace.of(shapes, known.default if usual else option_set)
    small = small_layers(shapes)
    held = {
        name: tuple(
            o for o in options if known.holds(o, shapes[name], dtype) and (o != _HALF or not usual or name in small)
        )
        for name, options in space.options.items()
    }
    kept = {name: options for name, options in held.items() if set(options) - {_HALF}}
    if not kept:
        raise Qua2SeDiMoError(
            f"{target} holds none of the options '{option_set}' of any layer: {shapes_text(shapes)}", known.needs
        )
    return SearchSpace({name: tuple(shapes[name]) for name in kept}, kept)
