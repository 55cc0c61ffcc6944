"""GGUF files as input: their weights, decoded, as a safetensors file that diffusers knows how to convert."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_space
from qua2sedimo.system.notes import note

_PLAIN = ("F32", "F16", "BF16")
_SHAPE = "comfy.gguf.orig_shape."  # in ComfyUI's files, of tensors whose rows were rearranged


@contextmanager
def decoded_file(path: Path) -> Iterator[Path]:
    """A temporary safetensors file with the tensors of a GGUF file by the same names, blocks decoded to fp16.

    It is said that the weights were quantized already. Raises :class:`Qua2SeDiMoError` if the file is damaged, has a
    type that cannot be decoded, or the package gguf is missing.
    """
    if find_spec("gguf") is None:
        raise Qua2SeDiMoError(
            f"{path}: GGUF files need the package gguf",
            "Install it: pip install 'qua2sedimo[gguf]'. Or pass the checkpoint that the file was made from.",
        )
    with tempfile.TemporaryDirectory(prefix="qua2sedimo-") as folder:
        copy = Path(folder) / "decoded.safetensors"
        tensors, types = _decoded(path)
        check_space(copy, sum(tensor.nbytes for tensor in tensors.values()), "decoding it")
        save_file(tensors, copy)
        del tensors
        quantized = {kind: count for kind, count in types.items() if kind not in _PLAIN}
        if quantized:
            most = ", ".join(sorted(quantized, key=lambda kind: -quantized[kind])[:3])
            note(
                f"{path} was quantized already ({most}): its decoded weights are taken for the original, so its errors "
                "add to those made here, and no measurement shows them. The checkpoint it was made from gives better "
                "results."
            )
        yield copy


def _decoded(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Tensors by name, and the number of weights of each type."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise Qua2SeDiMoError(
            f"{path} is damaged, or no GGUF file: {str(error) or type(error).__name__}", "Download it again."
        ) from error
    tensors: dict[str, torch.Tensor] = {}
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        try:
            values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        except NotImplementedError as error:
            raise Qua2SeDiMoError(
                f"{path}: tensor '{tensor.name}' has the type {kind}, which cannot be decoded here",
                "Pass the checkpoint that the file was made from.",
            ) from error
        types[kind] = types.get(kind, 0) + values.numel()
        tensors[tensor.name] = _compact(values.reshape(_shape(reader, tensor)), kind)
    return tensors, types


def _compact(values: torch.Tensor, kind: str) -> torch.Tensor:
    """In 16 bits, but as they are where these would not hold them."""
    if kind == "BF16":
        return values.bfloat16()
    half = values.half()
    return values if kind == "F32" or not torch.isfinite(half).all() else half


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    field = reader.get_field(_SHAPE + tensor.name)
    return tuple(map(int, reversed(tensor.shape) if field is None else field.contents()))
