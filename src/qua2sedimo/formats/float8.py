"""Weights stored in 8-bit floats, with or without scales: which tensor scales which, by the conventions in use.

ComfyUI's "fp8 scaled" checkpoints have ``X.scale_weight`` (newer: ``X.weight_scale``) beside ``X.weight``, one number,
or one for each output channel; the weight is their product. ``X.scale_input`` and ``X.input_scale`` are for kernels
that round activations too, ``scaled_fp8`` and ``X.comfy_quant`` say how a file was made. Without scales, as diffusers
writes them, numbers mean themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import parse_json

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_INTEGERS = ("I8", "U8")
_MARK = "scaled_fp8"
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_SCALES = re.compile("scale|zero|quant|absmax")
_REMEDY = "Start from the checkpoint in 16 bits, or dequantize it with the program that wrote it."


@dataclass(frozen=True)
class Scaling:
    """``scales``: name of a tensor → name of what it is multiplied with; ``others``: names that are no weights."""

    scales: Mapping[str, str] = field(default_factory=dict)
    others: frozenset[str] = frozenset()


def scaling_of(
    types: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], torch.Tensor], where: str
) -> Scaling:
    """How the 8-bit tensors of a checkpoint are scaled; ``types`` are its header's dtypes, ``read`` reads a tensor.

    Raises :class:`Qua2SeDiMoError` naming the tensor if they are scaled in a way that is not known here, or are
    integers.
    """
    marks = {name for name in types if name.rpartition(".")[2] == _MARK}
    small = [name for name, dtype in types.items() if dtype in FLOAT8 and name not in marks]
    packed = [name for name, dtype in types.items() if dtype in _INTEGERS and name.endswith(".weight")]
    if packed:
        raise Qua2SeDiMoError(f"{where}: '{packed[0]}' is quantized to {types[packed[0]]}", _REMEDY)
    scales: dict[str, str] = {}
    others = set(marks)
    beside: dict[str, list[str]] = {}
    for name in types:
        beside.setdefault(name.rpartition(".")[0], []).append(name)
    for name in small:
        module, _, last = name.rpartition(".")
        start = f"{module}." if module else ""
        about = {f"{start}scale_input", f"{start}input_scale", f"{start}comfy_quant"} & types.keys()
        found = [scale for scale in (f"{name}_scale", f"{start}scale_{last}") if scale in types]
        strange = [o for o in beside[module] if o not in {name, *found, *about} and _SCALES.search(o[len(start) :])]
        strange = strange if last == "weight" else []  # modules may have parameters of such names
        if strange:
            raise Qua2SeDiMoError(f"{where}: '{name}' is scaled by '{strange[0]}' in a way not known here", _REMEDY)
        if f"{start}comfy_quant" in about:
            _check_format(name, read(f"{start}comfy_quant"), where)
        if not found and (marks or about):
            raise Qua2SeDiMoError(f"{where} is marked as scaled, but has no scale of '{name}'", _REMEDY)
        if found:
            _check_shape(name, shapes[name], found[0], shapes[found[0]], where)
            scales[name] = found[0]
        others |= {*found, *about}
    return Scaling(scales, frozenset(others))


def scaled(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The fp32 product of an 8-bit weight [out, in, …] and its scale, one number or one for each output channel."""
    factor = scale.float().reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return weight.float() * factor


def _check_format(name: str, content: torch.Tensor, where: str) -> None:
    try:
        stated = parse_json(bytes(content.to(torch.uint8).tolist()).decode()).get("format")
    except (ValueError, AttributeError):
        stated = "unreadable"
    if stated not in _FORMATS:
        raise Qua2SeDiMoError(f"{where}: '{name}' has the format '{stated}', which is not known here", _REMEDY)


def _check_shape(name: str, weight: tuple[int, ...], scale: str, shape: tuple[int, ...], where: str) -> None:
    count = math.prod(shape)
    by_channel = bool(weight) and count == weight[0] and set(shape) <= {1, weight[0]} and shape[0] == weight[0]
    if count != 1 and not by_channel:
        raise Qua2SeDiMoError(
            f"{where}: '{scale}' has shape {list(shape)}, for a weight of {list(weight)}: neither one number nor one "
            "for each output channel",
            _REMEDY,
        )
