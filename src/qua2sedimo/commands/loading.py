"""The options for how a model is loaded, which all commands that load one share."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from qua2sedimo.denoisers.loading import Loading

_OPTIONS: dict[str, Any] = {
    "dtype": Annotated[
        str,
        typer.Option(help="fp32, bf16, fp16, or auto: that of the checkpoint. What a class keeps in fp32 stays so."),
    ],
    "device": Annotated[
        str | None, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, mps. Default: an accelerator, if any.")
    ],
    "variant": Annotated[
        str | None, typer.Option(help="Variant of the weight files: fp16. Default: none, or the only one.")
    ],
    "revision": Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")],
    "config": Annotated[
        str | None,
        typer.Option(
            help="For a single .safetensors file: the diffusers folder, or hub name, with its configuration and with "
            "the components that the file lacks.",
            metavar="FOLDER",
        ),
    ],
    "offload": Annotated[
        str,
        typer.Option(
            help="Keep weights in the CPU's memory until a `model`, a `group` of layers, or a layer (`sequential`) "
            "needs them on the accelerator: less memory there, slower."
        ),
    ],
    "vae_slicing": Annotated[bool, typer.Option("--vae-slicing", help="Decode images one by one: less memory.")],
    "vae_tiling": Annotated[bool, typer.Option("--vae-tiling", help="Decode images in tiles: less memory.")],
}
_PANEL = "How the model is loaded"


def with_loading(command: Callable[..., None]) -> Callable[..., None]:
    """A command with an argument ``loading``, as one with an option for each field of :class:`Loading` instead."""

    @functools.wraps(command)
    def called(*args: Any, **kwargs: Any) -> None:
        asked = Loading(**{field.name: kwargs.pop(field.name) for field in fields(Loading)})
        asked.check()
        command(*args, loading=asked, **kwargs)

    hints = typing.get_type_hints(command, include_extras=True) | _OPTIONS
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "loading"]
    last = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(field.name, last, default=field.default) for field in fields(Loading)]
    for option in _OPTIONS.values():
        typing.get_args(option)[1].rich_help_panel = _PANEL
    parameters = [p.replace(annotation=hints[p.name]) for p in (*own, *added)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called
