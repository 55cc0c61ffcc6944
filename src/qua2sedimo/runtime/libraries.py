"""Models of diffusers and of transformers: their config, a plain model made of it, and the names of their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import ConfigMixin
from diffusers.models.modeling_utils import no_init_weights
from torch import nn
from transformers import PreTrainedModel

from qua2sedimo.formats.tensorfiles import TEXT_WEIGHTS, WEIGHTS

#: Entries of a config that say where a model came from or in which dtype it is, not what it computes.
_CIRCUMSTANCES = ("_name_or_path", "quantization_config")
_OF_TRANSFORMERS = (*_CIRCUMSTANCES, "architectures", "dtype", "torch_dtype", "transformers_version")


def is_known(model: Any) -> bool:
    """Whether a model is one of diffusers or transformers, which are made from a config and load themselves."""
    return isinstance(model, (ConfigMixin, PreTrainedModel))


def of_transformers(cls: type[Any]) -> bool:
    """Whether a model class is one of transformers, as text encoders are."""
    return issubclass(cls, PreTrainedModel)


def config_of(model: Any) -> dict[str, Any]:
    """The entries of a model's config.json, without those of quantization and local paths."""
    if isinstance(model, PreTrainedModel):
        content = json.loads(model.config.to_json_string())
        content |= {"architectures": [type(model).__name__], "dtype": str(model.dtype).removeprefix("torch.")}
    else:
        content = json.loads(model.to_json_string())
    return {name: entry for name, entry in content.items() if name not in _CIRCUMSTANCES}


def plain_model(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    """The unquantized model of a config on the meta device."""
    given = {name: entry for name, entry in config.items() if name != "quantization_config"}
    if of_transformers(cls):
        with torch.device("meta"):
            made: nn.Module = cls(cls.config_class.from_dict(given))
    else:
        with no_init_weights(), init_empty_weights():
            made = cls.from_config(given)
    return made


def computing_entries(cls: Any, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entries of a transformers config that differ from the defaults of its class and say what is computed; None
    for a class of diffusers."""
    if not of_transformers(cls):
        return None
    given = {name: entry for name, entry in config.items() if name not in _OF_TRANSFORMERS}
    found: dict[str, Any] = cls.config_class.from_dict(given).to_diff_dict()
    return _without_circumstances(found)


def _without_circumstances(entry: Any) -> Any:
    if isinstance(entry, dict):
        kept = {name: value for name, value in entry.items() if name not in _OF_TRANSFORMERS}
        return {name: _without_circumstances(value) for name, value in kept.items()}
    return entry


def note_quantization(model: Any, quantization: Any) -> None:
    """Make ``quantization`` the ``quantization_config`` of a model's config."""
    if isinstance(model, PreTrainedModel):
        model.config.quantization_config = quantization
    else:
        model.register_to_config(quantization_config=quantization)


def weights_name(model: Any) -> str:
    """The base name of the weight files of a model, or of its class."""
    cls = model if isinstance(model, type) else type(model)
    return TEXT_WEIGHTS if of_transformers(cls) else WEIGHTS


def write_companions(model: Any, folder: Path) -> None:
    """Write what a model's own ``save_pretrained`` writes beside config.json and weights."""
    if isinstance(model, PreTrainedModel) and model.can_generate():
        model.generation_config.save_pretrained(folder)
