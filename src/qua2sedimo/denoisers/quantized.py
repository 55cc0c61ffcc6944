"""Models that are quantized already: refused, or decoded by the package that another program brings for it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json
from qua2sedimo.formats.tensorfiles import DAMAGED_FILE

PACKED = "qua2sedimo"  # the quantization method of our own exports
#: A method, and the package that registers it with diffusers and transformers when it is imported: they decode such
#: models with it. diffusers imports it by itself, transformers does not.
_SDNQ = "sdnq"


def quantized_by(component: Path) -> str | None:
    """The method by which a component's folder is quantized, "" if it is not stated; None if it is not quantized."""
    config = component / "config.json"
    content = read_json(config, DAMAGED_FILE) if config.is_file() else {}
    how = content.get("quantization_config") if isinstance(content, dict) else None
    if not how:
        return None
    return str(how.get("quant_method") or "") if isinstance(how, dict) else ""


def prepare_quantized(component: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if a component's folder is quantized by a program whose models are not decoded, or
    by one whose package is missing; else have that package register its models."""
    method = quantized_by(component)
    if method in (None, PACKED):
        return
    if method == _SDNQ and find_spec(_SDNQ) is not None:
        import_module(_SDNQ)
        return
    decode = f"Install the package that decodes it, pip install {_SDNQ}, or pass" if method == _SDNQ else "Pass"
    raise Qua2SeDiMoError(
        f"{component} is quantized already, by {method or 'another program'}",
        f"{decode} the unquantized checkpoint that it was made from.",
    )


def decode_foreign(pipeline: Any, folder: Path) -> Iterator[str]:
    """Decode components that another program quantized, and yield a remark about each."""
    for name, model in pipeline.components.items():
        method = quantized_by(folder / name) if isinstance(model, nn.Module) else None
        if method in (None, PACKED):
            continue
        # Not model.dequantize(): of transformers' models it passes an argument that SDNQ 0.2.8 does not take.
        setattr(pipeline, name, forget_quantization(model.hf_quantizer.dequantize(model)))
        yield (
            f"{folder / name} was quantized already, by {method}: its decoded weights are used as the original, so the "
            "errors of both quantizations add up, and no measurement shows the first. The checkpoint it was made from "
            "gives better results."
        )


def forget_quantization(model: nn.Module) -> nn.Module:
    """Make a decoded model say no more that it is quantized, or which files it is from: these hold other numbers."""
    for attribute in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(attribute, None)
    gone = ("quantization_config", "_name_or_path")
    config: Any = model.__dict__.get("_internal_dict")
    if config is not None:  # of diffusers, read only
        model.__dict__["_internal_dict"] = type(config)({k: v for k, v in config.items() if k not in gone})
        return model
    config = getattr(model, "config", None)
    if hasattr(config, "quantization_config"):  # of transformers
        del config.quantization_config
        config._name_or_path = ""
    return model
