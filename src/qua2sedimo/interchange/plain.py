"""Plain 16-bit weights of a quantized model: for fine-tuning, and for runtimes that quantize by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from qua2sedimo.formats.files import write_json
from qua2sedimo.interchange.whole import other_tensors, whole_layers
from qua2sedimo.runtime.checkpoint import SHARD_BYTES, PackedSize, Values, write_export
from qua2sedimo.runtime.libraries import config_of, weights_name, write_companions
from qua2sedimo.runtime.shards import ShardWriter
from qua2sedimo.runtime.units import NO_COPIES, Copies

_FORMAT = 1


def save_plain(
    model: DiffusionPipeline | nn.Module,
    component: str | Sequence[str] | None,
    values: Values,
    out: Path,
    extra: Mapping[str, Any] | None = None,
    copies: Copies = NO_COPIES,
) -> PackedSize:
    """Write a pipeline, denoiser or text encoder to the folder ``out``, its quantized weights as 16-bit floats.

    Arguments are those of :func:`~qua2sedimo.runtime.save_packed`. The weights are bit for bit those of a packed
    checkpoint; every copy of a layer is written.
    """

    def write(denoiser: Any, own: Values, own_copies: Copies, folder: Path) -> tuple[PackedSize, int]:
        layers = whole_layers(denoiser, own, own_copies)
        writer = ShardWriter(folder, SHARD_BYTES, weights_name(denoiser))
        nbytes = total = 0
        for name, layer in layers.items():
            weight = layer.dequantized()
            nbytes += 2 * weight.numel()
            writer.add(f"{name}.weight", weight)
        for name, tensor in other_tensors(denoiser, layers):
            total += tensor.numel() * tensor.element_size()
            writer.add(name, tensor)
        writer.close()
        write_json(folder / "config.json", config_of(denoiser))
        write_companions(denoiser, folder)
        size = PackedSize(nbytes, sum(layer.weights for layer in layers.values()), nbytes + total)
        return size, _FORMAT

    return write_export(model, component, values, out, extra or {}, copies, write, "diffusers")
