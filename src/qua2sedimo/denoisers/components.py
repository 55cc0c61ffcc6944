"""Components that are quantized beside denoisers, or in their place: text encoders and autoencoders.

Pipelines call a text encoder before the steps, and an autoencoder, or rather its ``decode``, after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError

#: The name of what is decoded, whatever an autoencoder's class calls it.
LATENTS = "z"


def is_encoder(module: nn.Module) -> bool:
    """Whether a component is a text encoder of transformers: called before the steps, not in each."""
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


def is_decoder(module: nn.Module) -> bool:
    """Whether a component is an autoencoder of diffusers: called after the steps, to decode their latents."""
    from diffusers import ModelMixin

    return isinstance(module, ModelMixin) and all(callable(getattr(module, way, None)) for way in ("encode", "decode"))


@contextmanager
def as_called(module: nn.Module) -> Iterator[None]:
    """Within, calling a component is what pipelines do with it, and its hooks see that they do: an autoencoder decodes.

    Other components are called as they are.
    """
    own = vars(module)
    if not is_decoder(module) or "decode" in own:  # within this context already
        yield
        return
    before = own.get("forward")  # that hooks of others gave it
    own["forward"], own["decode"] = module.decode, module.__call__
    try:
        yield
    finally:
        del own["decode"], own["forward"]
        if before is not None:
            own["forward"] = before


def arguments_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``decode`` by name. Offloading hides its signature; what is decoded comes first."""
    (_, latents), *others = {**{str(place): value for place, value in enumerate(args)}, **kwargs}.items()
    return {LATENTS: latents, **dict(others)}


def refuse_shared(pipeline: Any, chosen: Mapping[str, nn.Module]) -> None:
    """Raise :class:`Qua2SeDiMoError` if a chosen component shares weights with another component of the pipeline.

    They would change with it, but be exported twice: once quantized, and once as they are.
    """
    found = {name: module for name, module in pipeline.components.items() if isinstance(module, nn.Module)}
    owners = {id(p): name for name, module in chosen.items() for p in module.parameters()}
    for name, module in {**found, **chosen}.items():
        other = next((owners[id(p)] for p in module.parameters() if owners.get(id(p), name) != name), None)
        if other is not None:
            raise Qua2SeDiMoError(
                f"{type(pipeline).__name__}: '{other}' and '{name}' share weights, and cannot be quantized apart",
                f"Give the pipeline a copy of its own as '{name}', or choose other components.",
            )


def refuse_beside(chosen: Mapping[str, nn.Module], form: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if a text encoder or autoencoder is to be written in a format that is for
    denoisers."""
    for name, module in chosen.items() if form.startswith("gguf") else ():
        kind = "a text encoder" if is_encoder(module) else "an autoencoder" if is_decoder(module) else ""
        if kind:
            raise Qua2SeDiMoError(
                f"'{name}' is {kind} ({type(module).__name__}), and the format {form} is written for denoisers",
                "Leave this component out, or use another format: this program's own, sdnq or diffusers.",
            )
