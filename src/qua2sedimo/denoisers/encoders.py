"""Text encoders among the components that are quantized, and what two components may not share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError


def is_encoder(module: nn.Module) -> bool:
    """Whether a component is a text encoder of transformers: called before the steps, not in each."""
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


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


def refuse_encoders(chosen: Mapping[str, nn.Module], form: str) -> None:
    """Raise :class:`Qua2SeDiMoError` if a text encoder is to be written in a format that is for denoisers."""
    for name, module in chosen.items() if form.startswith("gguf") else ():
        if is_encoder(module):
            raise Qua2SeDiMoError(
                f"'{name}' is a text encoder ({type(module).__name__}), and the format {form} is written for denoisers",
                "Leave this component out, or use another format: this program's own, sdnq or diffusers.",
            )
