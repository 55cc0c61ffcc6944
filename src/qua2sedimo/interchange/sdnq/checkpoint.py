"""Writing a quantized model as a folder that stock diffusers loads after ``pip install sdnq``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from qua2sedimo.denoisers.components import is_encoder
from qua2sedimo.denoisers.stored import kept_in_fp32
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_json
from qua2sedimo.interchange.sdnq.layer import PER_ROW, Form, form_of, stored_layer
from qua2sedimo.interchange.whole import WholeLayer, other_tensors, refuse_growth, whole_layers
from qua2sedimo.options import Option
from qua2sedimo.runtime.checkpoint import SHARD_BYTES, PackedSize, Values, write_export
from qua2sedimo.runtime.libraries import config_of, weights_name, write_companions
from qua2sedimo.runtime.shards import ShardWriter, model_tensors
from qua2sedimo.runtime.table import layer_modules
from qua2sedimo.runtime.units import NO_COPIES, Copies

#: Of the version that these files were tested with. Its loader reads them with any newer version of the same format.
SDNQ_VERSION = "0.2.8"
#: What SDNQ assumes of layers without settings of their own, and switches that keep it from choosing layers itself.
_SETTINGS: dict[str, Any] = {
    "quant_method": "sdnq",
    "sdnq_version": SDNQ_VERSION,
    "weights_dtype": "uint4",
    "group_size": PER_ROW,
    "dequantize_fp32": False,
    "quant_conv": True,
    "quant_embedding": False,
    "use_quantized_matmul": False,
    "minimum_allowed_numel": 0,
    "minimum_allowed_channel_size": 0,
    "add_skip_keys": False,
}
_FORMAT = 1


def save_sdnq(
    model: DiffusionPipeline | nn.Module,
    component: str | Sequence[str] | None,
    values: Values,
    out: Path,
    extra: Mapping[str, Any] | None = None,
    copies: Copies = NO_COPIES,
    any_size: bool = False,
) -> PackedSize:
    """Write a pipeline, denoiser or text encoder to the folder ``out`` as SDNQ stores it; returns its size there.

    Arguments are those of :func:`~qua2sedimo.runtime.save_packed`. Every layer keeps its quantized values: exact, or
    to the rounding of the weight's 16-bit type where it has a zero point or is of low rank. Layers that the format has
    no small form for are written larger if ``any_size``.

    Raises :class:`Qua2SeDiMoError` naming the layers if the quantized layers would take more than 1 % more bytes than
    in a packed checkpoint, and ``any_size`` is false.
    """

    def write(denoiser: Any, own: Values, own_copies: Copies, folder: Path) -> tuple[PackedSize, int]:
        layers = whole_layers(denoiser, own, own_copies)
        kept = layers_kept(denoiser)
        forms = {name: _plain_form(layer) if name in kept else _form(layer) for name, layer in layers.items()}
        if not any_size:
            nbytes = {name: form.nbytes for name, form in forms.items()}
            refuse_growth("SDNQ", layers, nbytes, "Make a study with `init --for sdnq`")
        return _write(denoiser, layers, forms, folder), _FORMAT

    return write_export(model, component, values, out, extra or {}, copies, write, "sdnq")


def layers_kept(model: nn.Module) -> set[str]:
    """Layers that cannot be quantized in this format, by module: those of a text encoder that its class keeps in fp32,
    such as ``wo`` of T5, whose forward pass converts its input to the dtype that the stored weight has."""
    kept = kept_in_fp32(type(model)) if is_encoder(model) else ()
    return {name for name in layer_modules(model) if set(name.split(".")) & set(kept)}


def _form(layer: WholeLayer) -> Form:
    if layer.value is None:
        return _plain_form(layer)
    return form_of(Option.parse(layer.value.option), layer.shape, layer.dtype)


def _plain_form(layer: WholeLayer) -> Form:
    return Form("plain", 2 * torch.Size(layer.shape).numel())


def _write(denoiser: Any, layers: Mapping[str, WholeLayer], forms: Mapping[str, Form], folder: Path) -> PackedSize:
    writer = ShardWriter(folder, SHARD_BYTES, weights_name(denoiser))
    settings: dict[str, dict[str, Any]] = {}
    nbytes = total = 0
    for name, layer in layers.items():
        if layer.value is None:
            tensors = {"weight": layer.dequantized()}
        else:
            stored = stored_layer(layer.value, forms[name])
            tensors = stored.tensors
            if stored.settings is not None:
                settings[f"{name}.weight"] = stored.settings
        found = sum(t.numel() * t.element_size() for t in tensors.values())
        if found != forms[name].nbytes:
            raise Qua2SeDiMoError(f"layer '{name}' takes {found} bytes instead of {forms[name].nbytes}")
        nbytes += found
        for tensor_name, tensor in tensors.items():
            writer.add(f"{name}.{tensor_name}", tensor)
    for name, tensor in other_tensors(denoiser, layers):
        writer.add(name, tensor)
        total += tensor.numel() * tensor.element_size()
    writer.close()
    # Names of parameters, which SDNQ compares whole; other matrices it would quantize itself, or expect quantized.
    kept = [n for n, t in model_tensors(denoiser) if n.endswith(".weight") and t.dim() > 1 and n not in settings]
    quantization = {**_SETTINGS, "modules_to_not_convert": kept, "modules_quant_config": settings}
    write_json(folder / "config.json", {**config_of(denoiser), "quantization_config": quantization})
    write_companions(denoiser, folder)
    weights = sum(layer.weights for layer in layers.values())
    return PackedSize(nbytes, weights, nbytes + total)
