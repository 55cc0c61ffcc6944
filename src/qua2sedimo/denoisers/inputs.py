"""Example inputs of a forward pass, built from the signature of ``forward`` and the denoiser's configuration.

diffusers names arguments and configuration keys by role, so one rule per role serves every class that uses the
name. A required argument without a rule is an error.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json

TEXT_TOKENS = 77
_REMEDY = "Inspect the pipeline's folder instead, or pass the inputs with --inputs FILE.json."

#: Configuration keys for the width of the text (or image) tokens; the first that is set is the width at the input.
_TEXT_WIDTHS = (
    "caption_channels", "encoder_hid_dim", "joint_attention_dim", "text_embed_dim", "text_dim", "cap_feat_dim",
    "caption_feat_dim", "text_in_dim", "in_text_dim", "context_in_dim",
    "cross_attention_dim", "cross_attention_input_dim",
)  # fmt: skip


class _Asked:
    """What the rules read: the batch size, the configuration, and the denoiser itself."""

    def __init__(self, denoiser: nn.Module, batch: int) -> None:
        self.denoiser, self.batch = denoiser, batch
        self.parameters = inspect.signature(denoiser.forward).parameters
        self._config: Mapping[str, Any] = getattr(denoiser, "config", {})

    def get(self, *keys: str) -> Any:
        """The value of the first of these keys that is set; the first entry of a list with one value per stage."""
        value = next((self._config[key] for key in keys if self._config.get(key) is not None), None)
        return value[0] if isinstance(value, (list, tuple)) and value else value

    def must(self, argument: str, *keys: str) -> int:
        value = self.get(*keys)
        if not isinstance(value, int):
            raise Qua2SeDiMoError(
                f"{type(self.denoiser).__name__}: '{argument}' cannot be built: the configuration sets none of "
                f"{', '.join(keys)}",
                _REMEDY,
            )
        return value

    @property
    def sample(self) -> tuple[int, int]:
        """Height and width of the latent; 32 patches per side if the configuration does not set them."""
        size = self._config.get("sample_size")
        if isinstance(size, (list, tuple)):
            return int(size[-2]), int(size[-1])
        if size is None and self.get("sample_height"):
            return self.must("sample", "sample_height"), self.must("sample", "sample_width")
        patch = self._config.get("patch_size")
        patch = patch[-1] if isinstance(patch, (list, tuple)) else patch or 1
        return (int(size), int(size)) if size else (32 * patch, 32 * patch)

    @property
    def packed(self) -> bool:
        """Whether the latent is a sequence of tokens with their positions in a separate argument."""
        return "img_ids" in self.parameters


def _latent(asked: _Asked, name: str) -> torch.Tensor:
    channels = asked.must(name, "in_channels", "in_visual_dim", "in_dim")
    height, width = asked.sample
    if asked.packed:
        return torch.randn(asked.batch, _tokens(asked), channels)
    if any(isinstance(module, nn.Conv3d) for module in asked.denoiser.modules()):
        frames = 2 * (asked.get("patch_size_t", "patch_size") or 1)
        return torch.randn(asked.batch, channels, frames, height, width)
    return torch.randn(asked.batch, channels, height, width)


def _tokens(asked: _Asked) -> int:
    height, width = asked.sample
    return min(height * width, 1024)


def _text(asked: _Asked, name: str) -> torch.Tensor | None:
    if asked.get(*_TEXT_WIDTHS) is None and asked.parameters[name].default is None:
        return None
    return torch.randn(asked.batch, asked.get("text_len") or TEXT_TOKENS, asked.must(name, *_TEXT_WIDTHS))


def _classes(asked: _Asked, name: str) -> torch.Tensor | None:
    if asked.get("class_embed_type") in ("projection", "simple_projection"):
        return torch.randn(asked.batch, asked.must(name, "projection_class_embeddings_input_dim"))
    known = asked.get("num_class_embeds", "num_embeds_ada_norm") is not None or asked.get("class_embed_type")
    return torch.zeros(asked.batch, dtype=torch.long) if known else None


def _added(asked: _Asked, name: str) -> dict[str, torch.Tensor | None] | None:
    """Micro-conditions: PixArt's resolution and aspect ratio, or those of a U-Net's ``addition_embed_type``."""
    kind = asked.get("addition_embed_type")
    if kind == "text_time":
        width = asked.must(name, "addition_time_embed_dim")
        text = asked.must(name, "projection_class_embeddings_input_dim") - 6 * width
        return {"text_embeds": torch.randn(asked.batch, text), "time_ids": torch.ones(asked.batch, 6)}
    if kind == "image" or asked.get("encoder_hid_dim_type") == "image_proj":
        return {"image_embeds": torch.randn(asked.batch, asked.must(name, "encoder_hid_dim", "cross_attention_dim"))}
    if kind not in (None, "text"):
        raise Qua2SeDiMoError(f"'{name}' of addition_embed_type '{kind}' cannot be built", _REMEDY)
    if getattr(asked.denoiser, "use_additional_conditions", False):
        return {"resolution": torch.ones(asked.batch, 2), "aspect_ratio": torch.ones(asked.batch, 1)}
    if hasattr(asked.denoiser, "use_additional_conditions"):
        return {"resolution": None, "aspect_ratio": None}
    return None


def _places(asked: _Asked, count: int) -> torch.Tensor:
    axes = next((v for k in ("axes_dims_rope", "axes_dim") if (v := getattr(asked.denoiser.config, k, None))), (0,) * 3)
    return torch.zeros(count, len(axes))


def _meta_size(asked: _Asked, name: str) -> torch.Tensor | None:
    return torch.ones(asked.batch, 6) if asked.get("use_style_cond_and_image_meta_size") else None


def _style(asked: _Asked, name: str) -> torch.Tensor | None:
    return torch.zeros(asked.batch, dtype=torch.long) if asked.get("use_style_cond_and_image_meta_size") else None


def _guidance(asked: _Asked, name: str) -> torch.Tensor | None:
    return torch.ones(asked.batch) if asked.get("guidance_embeds") else None


def _t5(asked: _Asked, name: str) -> torch.Tensor:
    return torch.randn(asked.batch, asked.get("text_len_t5") or 256, asked.must(name, "cross_attention_dim_t5"))


_RULES: dict[str, Callable[[_Asked, str], Any]] = {
    "hidden_states": _latent,
    "sample": _latent,
    "timestep": lambda asked, name: torch.full((asked.batch,), 500.0),
    "encoder_hidden_states": _text,
    "class_labels": _classes,
    "added_cond_kwargs": _added,
    "pooled_projections": lambda asked, name: torch.randn(
        asked.batch, asked.must(name, "pooled_projection_dim", "pooled_embed_dim", "pooled_projection_size")
    ),
    "guidance": _guidance,
    "img_ids": lambda asked, name: _places(asked, _tokens(asked)),
    "txt_ids": lambda asked, name: _places(asked, TEXT_TOKENS),
    "encoder_attention_mask": lambda asked, name: torch.ones(asked.batch, asked.get("text_len") or TEXT_TOKENS),
    "encoder_hidden_states_t5": _t5,
    "text_embedding_mask": lambda asked, name: torch.ones(asked.batch, asked.get("text_len") or TEXT_TOKENS),
    "text_embedding_mask_t5": lambda asked, name: torch.ones(asked.batch, asked.get("text_len_t5") or 256),
    "image_meta_size": _meta_size,
    "style": _style,
    "original_size": lambda asked, name: torch.ones(asked.batch, 2),
    "target_size": lambda asked, name: torch.ones(asked.batch, 2),
    "crop_coords": lambda asked, name: torch.ones(asked.batch, 2),
    "micro_conds": lambda asked, name: torch.ones(asked.batch, 5),
}

#: Passed only if required: optional, and its shape differs between classes.
_ONLY_IF_REQUIRED = {"encoder_attention_mask"}


def built_inputs(denoiser: nn.Module, batch: int = 2) -> dict[str, Any]:
    """Keyword arguments of a forward pass of ``batch`` samples at the size set in the configuration.

    Raises :class:`Qua2SeDiMoError` that names a required argument which has no rule.
    """
    asked = _Asked(denoiser, batch)
    inputs: dict[str, Any] = {}
    for name, parameter in asked.parameters.items():
        required = parameter.default is parameter.empty
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if name in _RULES and (required or name not in _ONLY_IF_REQUIRED):
            value = _RULES[name](asked, name)
            if value is not None or required:
                inputs[name] = value
        elif required:
            raise Qua2SeDiMoError(
                f"{type(denoiser).__name__}.forward needs '{name}', which cannot be built from the configuration",
                _REMEDY,
            )
    return inputs


def read_inputs(path: Path) -> dict[str, Any]:
    """Keyword arguments of a forward pass from a JSON file.

    ``{"shape": [2, 4, 8, 8], "dtype": "float16"}`` is a random tensor (``dtype`` defaults to ``float32``), a list of
    numbers is a tensor with these values, and other values are passed unchanged. Raises :class:`Qua2SeDiMoError` if
    the file is not a JSON object, or an entry is not a valid tensor.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise Qua2SeDiMoError(f"{path} is not a JSON object with the arguments of the forward pass", _EXAMPLE)
    return {name: _given(value, f"{path}: {name}") for name, value in content.items()}


_MOST_NUMBERS = 2**30  # of an input
_EXAMPLE = 'Example: {"hidden_states": {"shape": [1, 4, 64, 64]}, "timestep": [500]}'


def _given(value: Any, where: str) -> Any:
    if isinstance(value, dict) and "shape" in value:
        dtype = getattr(torch, str(value.get("dtype", "float32")), None)
        if not isinstance(dtype, torch.dtype) or set(value) - {"shape", "dtype"}:
            raise Qua2SeDiMoError(f"{where}: not a tensor with a shape and a dtype: {value}", _EXAMPLE)
        shape = value["shape"]
        sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if not sizes or math.prod(shape) > _MOST_NUMBERS:
            raise Qua2SeDiMoError(f"{where}: not a shape of at most {_MOST_NUMBERS:,} numbers", _EXAMPLE)
        return torch.randn(shape, dtype=dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
    if isinstance(value, dict):
        return {name: _given(inner, f"{where}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError) as error:
            raise Qua2SeDiMoError(f"{where}: not a list of numbers: {error}", _EXAMPLE) from error
    return value
