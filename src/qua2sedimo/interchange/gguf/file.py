"""Writing the denoisers of a quantized model as GGUF files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_space, check_writable, write_via
from qua2sedimo.formats.gguf_checksums import NAME, UNKNOWN, check, has_checksum, seal
from qua2sedimo.interchange.gguf.names import Named, Names, architecture_of, named
from qua2sedimo.interchange.whole import WholeLayer, other_tensors, refuse_growth, whole_layers
from qua2sedimo.quantizers import GGUF_METHODS, blocks_of, type_of
from qua2sedimo.runtime.checkpoint import PackedSize, Values, separate_denoisers
from qua2sedimo.runtime.libraries import config_of
from qua2sedimo.runtime.units import NO_COPIES, Copies

ENDING = ".gguf"
_NO_CHANGE = 1e-4  # relative error of a tensor beside the layers, below which it is written as F16
#: Type → ``general.file_type`` of a file in which most weights have it.
_FILE_TYPES = {
    "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17,
    "Q6_K": 18, "IQ4_NL": 25,
}  # fmt: skip

#: A tensor's type, its shape, and its data as the file has them.
_Stored = tuple[str, tuple[int, ...], np.ndarray]


def check_gguf_file(out: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if no GGUF file can be written at ``out``, or a file that is not an
    export of this program is there."""
    if out.suffix != ENDING:
        raise Qua2SeDiMoError(f"{out}: a GGUF export is a file", f"Name one that ends in {ENDING}.")
    if find_spec("gguf") is None:
        raise Qua2SeDiMoError("GGUF files need the package gguf", "Install it: pip install 'qua2sedimo[gguf]'.")
    check_writable(out)
    if out.is_dir():
        raise Qua2SeDiMoError(f"{out} is a folder", "Choose another name.")
    if out.exists() and not (out.is_file() and has_checksum(out)):
        raise Qua2SeDiMoError(f"{out} is there, and was not written by this program", "Choose another name.")


def save_gguf(
    model: DiffusionPipeline | nn.Module,
    component: str | Sequence[str] | None,
    values: Values,
    out: Path,
    extra: Mapping[str, Any] | None = None,
    copies: Copies = NO_COPIES,
    any_size: bool = False,
    names: Names = "diffusers",
) -> PackedSize:
    """Write the denoiser of a pipeline, or a denoiser, to the file ``out``; returns its size there.

    Arguments are those of :func:`~qua2sedimo.runtime.save_packed`; of several denoisers, each has a file that its
    component's name is added to. ``extra`` and the denoiser's configuration are stored as JSON. Layers of a GGUF type
    are stored byte for byte as they are packed; others, and all tensors beside them, as F16, or as F32 if their class
    keeps them in fp32 or F16 would change them.

    Raises :class:`Qua2SeDiMoError` naming the layers if the quantized layers would take more than 1 % more bytes than
    in a packed checkpoint, and ``any_size`` is false; or if the original names of a tensor are not known.
    """
    check_gguf_file(out)
    found: dict[Path, _Contents] = {}
    denoisers = separate_denoisers(model, component, values, copies)
    for name, denoiser, own, own_copies in denoisers:
        path = out if len(denoisers) == 1 else out.with_name(f"{out.stem}-{name}{ENDING}")
        check_gguf_file(path)
        if path.exists():
            check(path, "Move it away, or choose another name: a file that was changed is not overwritten.")
        layers = whole_layers(denoiser, own, own_copies)
        if not any_size:
            nbytes = {name: _layer_bytes(layer) for name, layer in layers.items()}
            refuse_growth("GGUF", layers, nbytes, "Make a study with `init --for gguf`")
        found[path] = _Contents.of(denoiser, layers, names)
    sizes = [_write(path, contents, names, extra or {}) for path, contents in found.items()]
    return PackedSize(*(sum(column) for column in zip(*map(astuple, sizes))))


def _kind(layer: WholeLayer) -> str | None:
    """The name of the layer's type; None if it is written as a plain tensor."""
    if layer.value is None or len(layer.shape) != 2 or layer.value.method not in {m.name for m in GGUF_METHODS}:
        return None
    return type_of(layer.value.method, layer.value.number).name


def _layer_bytes(layer: WholeLayer) -> int:
    if _kind(layer) is None or layer.value is None:
        return 2 * math.prod(layer.shape)
    return layer.value.nbytes


@dataclass(frozen=True)
class _Contents:
    """What a file gets: the tensors in order, and where their data come from."""

    denoiser: nn.Module
    layers: Mapping[str, WholeLayer]
    others: Mapping[str, torch.Tensor]
    tensors: Sequence[Named]

    @classmethod
    def of(cls, denoiser: nn.Module, layers: Mapping[str, WholeLayer], names: Names) -> _Contents:
        """Raises :class:`Qua2SeDiMoError` if a tensor has no name, or layers that share one have several types."""
        others = dict(other_tensors(denoiser, layers))
        tensors = named(denoiser, names, [*(f"{name}.weight" for name in layers), *others])
        kinds = {f"{name}.weight": _kind(layer) for name, layer in layers.items()}
        for one in tensors:
            _refuse_mixed(one, kinds)
        return cls(denoiser, layers, others, tensors)

    def stored(self, one: Named) -> _Stored:
        """A tensor's type, shape, and data."""
        parts, kind = [], None
        for part in one.parts:
            layer = self.layers.get(part.removesuffix(".weight")) if part.endswith(".weight") else None
            kind = None if layer is None else _kind(layer)
            if layer is None:
                parts.append(self.others[part].detach().cpu())
            else:
                parts.append(blocks_of(layer.value) if kind and layer.value is not None else layer.dequantized())
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if one.swapped:
            whole = torch.cat(whole.chunk(2)[::-1])
        if kind is not None:
            return kind, tuple(whole.shape), whole.contiguous().numpy()  # bytes: the writer finds the number of weights
        return _plain(whole)


def _plain(tensor: torch.Tensor) -> _Stored:
    """As F16, or as F32 if it has more digits or F16 would change it."""
    exact, half = tensor.to(torch.float32).contiguous(), tensor.to(torch.float16).contiguous()
    lost = float((half.float() - exact).norm())
    if tensor.element_size() > 2 or not lost <= _NO_CHANGE * float(exact.norm()):
        return "F32", tuple(exact.shape), exact.numpy()
    return "F16", tuple(half.shape), half.numpy()


def _write(path: Path, contents: _Contents, names: Names, extra: Mapping[str, Any]) -> PackedSize:
    denoiser, layers = contents.denoiser, contents.layers
    # Each tensor is made twice, for its size and when it is written, so that only one is in memory.
    described = [(one, *_described(contents.stored(one))) for one in contents.tensors]
    nbytes = sum(_layer_bytes(layer) for layer in layers.values())
    total = sum(count for *_, count in described)
    size = PackedSize(nbytes, sum(layer.weights for layer in layers.values()), total)
    check_space(path, total, "the GGUF file")

    def write(temporary: Path) -> None:
        import gguf

        writer = gguf.GGUFWriter(temporary, architecture_of(denoiser))
        writer.add_type("model")
        writer.add_name(str(extra.get("model") or type(denoiser).__name__))
        writer.add_quantized_by("qua2sedimo")
        writer.add_string(NAME, UNKNOWN)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(_FILE_TYPES[_most_used(layers.values())])
        writer.add_string("qua2sedimo.names", names)
        writer.add_string("qua2sedimo.config", json.dumps(config_of(denoiser)))
        writer.add_string("qua2sedimo.info", json.dumps({**asdict(size), "extra": dict(extra)}))
        for one, kind, shape, dtype, count in described:
            writer.add_tensor_info(one.name, shape, dtype, count, gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in contents.tensors:
            writer.write_tensor_data(contents.stored(one)[2])
        writer.close()
        seal(temporary)

    write_via(path, write, total)
    return size


def _described(stored: _Stored) -> tuple[str, tuple[int, ...], np.dtype, int]:
    kind, shape, data = stored
    return kind, shape, data.dtype, data.nbytes


def _most_used(layers: Iterable[WholeLayer]) -> str:
    """The type of most weights."""
    weights: dict[str, int] = {}
    for layer in layers:
        kind = _kind(layer) or "F16"
        weights[kind] = weights.get(kind, 0) + math.prod(layer.shape)
    return max(weights, key=lambda kind: weights[kind], default="F16")


def _refuse_mixed(one: Named, kinds: Mapping[str, str | None]) -> None:
    """Raise :class:`Qua2SeDiMoError` if layers that share a tensor have several types."""
    found = {kinds.get(part) or "F16" for part in one.parts}
    if len(found) > 1:
        raise Qua2SeDiMoError(
            f"the original tensor '{one.name}' holds {', '.join(one.parts)}, whose types differ: "
            f"{', '.join(sorted(found))}",
            "Give these layers one option, or write them with diffusers' names: --format gguf.",
        )
