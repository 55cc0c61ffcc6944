"""What a study may choose if its result is for another program: ``target`` in study.yaml, ``--for`` of commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.interchange.sdnq import form_of
from qua2sedimo.options import Option, SearchSpace

Shape = tuple[int, ...]
_SHOWN = 5


def _in_sdnq(option: Option, shape: Shape, dtype: torch.dtype) -> bool:
    """Whether SDNQ's format holds the option in the bytes that it takes here, in one of its quantized forms."""
    form = form_of(option, shape, dtype)
    return form.kind != "plain" and form.nbytes == option.nbytes(shape)


#: Target → whether its format holds an option of a whole layer; and its option set in place of ``default``.
_HOLDS: Mapping[str, Callable[[Option, Shape, torch.dtype], bool]] = {"sdnq": _in_sdnq}
_DEFAULT_SETS: Mapping[str, str] = {"sdnq": "wide"}


def space_for(target: str, shapes: Mapping[str, Shape], option_set: str, dtype: torch.dtype) -> SearchSpace:
    """The options of a set that the target's format holds, for weights of a 16-bit type.

    A layer that it holds in none of them is left out, and so stays in 16 bits. Raises :class:`Qua2SeDiMoError` naming
    the layers if none is left.
    """
    named = _DEFAULT_SETS[target] if option_set == "default" else option_set
    space, holds = SearchSpace.of(shapes, named), _HOLDS[target]
    held = {
        name: tuple(option for option in space.options[name] if holds(option, shape, dtype))
        for name, shape in shapes.items()
    }
    kept = {name: options for name, options in held.items() if options}
    if not kept:
        shown = [f"'{name}' {list(shape)}" for name, shape in list(shapes.items())[:_SHOWN]]
        layers = ", ".join([*shown, *(["…"] if len(shapes) > _SHOWN else [])])
        raise Qua2SeDiMoError(
            f"{target} holds none of the options '{option_set}' of any layer: {layers}",
            "Choose other options with --options.",
        )
    return SearchSpace({name: tuple(shapes[name]) for name in kept}, kept)
