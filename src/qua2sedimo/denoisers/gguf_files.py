"""GGUF files as input: their weights, decoded, as a safetensors file that diffusers knows how to convert."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.gguf_checksums import check
from qua2sedimo.formats.tensorfiles import scratch_file
from qua2sedimo.system.notes import note

_PLAIN = ("F32", "F16", "BF16")
#: Bytes of values in the head of a file, by type; the types of texts and arrays; how deep arrays may be nested.
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY, _DEEPEST = 8, 9, 4
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
    tensors, types = _decoded(path)
    with scratch_file(tensors, "decoding it") as copy:
        del tensors
        quantized = {kind: count for kind, count in types.items() if kind not in _PLAIN}
        if quantized:
            most = ", ".join(sorted(quantized, key=lambda kind: -quantized[kind])[:3])
            note(
                f"{path} was quantized already ({most}): its decoded weights are used as the original, so the errors "
                "of both quantizations add up, and no measurement shows the first. The checkpoint it was made from "
                "gives better results."
            )
        yield copy


def _decoded(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Tensors by name, and the number of weights of each type."""
    import gguf

    try:
        check(path, "Export it again.")
        with path.open("rb") as file:
            _Head(file).walk()
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
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
        try:
            tensors[tensor.name] = _compact(values.reshape(_shape(reader, tensor)), kind)
        except (RuntimeError, ValueError, TypeError) as error:
            raise Qua2SeDiMoError(
                f"{path} is damaged: tensor '{tensor.name}': {error}", "Download it again."
            ) from error
    return tensors, types


class _Head:
    """Steps through the head of a GGUF file: counts and lengths in it must fit into the file.

    The package gguf does not compare them: with a damaged one it goes on until memory is full.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._order = file, "<"
        self._size = os.fstat(file.fileno()).st_size

    def walk(self) -> None:
        """Raises ValueError if the head does not end within the file."""
        self._skip(4)
        version = self._file.read(4)
        self._order = ">" if version[:2] == b"\0\0" else "<"  # it is a small number
        tensors, entries = self._number("Q"), self._number("Q")
        for _ in range(entries):
            self._text()
            self._value(self._number("I"))
        for _ in range(tensors):
            self._text()
            self._skip(8 * self._number("I"))  # lengths of its axes
            self._skip(4 + 8)  # its type and place

    def _value(self, kind: int, depth: int = 0) -> None:
        if kind == _TEXT:
            self._text()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self._number("I"), self._number("Q")
            if inner in _BYTES:
                self._skip(count * _BYTES[inner])
            else:
                for _ in range(count):
                    self._value(inner, depth + 1)
        elif kind in _BYTES:
            self._skip(_BYTES[kind])
        else:
            raise ValueError(f"an entry of type {kind}")

    def _text(self) -> None:
        self._skip(self._number("Q"))

    def _number(self, code: str) -> int:
        raw = self._file.read(struct.calcsize(code))
        if len(raw) < struct.calcsize(code):
            raise ValueError("it is cut within its head")
        return int(struct.unpack(self._order + code, raw)[0])

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise ValueError("it is shorter than its head says")
        self._file.seek(count, os.SEEK_CUR)


def _compact(values: torch.Tensor, kind: str) -> torch.Tensor:
    """In 16 bits, but as they are where these would not hold them."""
    if kind == "BF16":
        return values.bfloat16()
    half = values.half()
    return values if kind == "F32" or not torch.isfinite(half).all() else half


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    field = reader.get_field(_SHAPE + tensor.name)
    return tuple(map(int, reversed(tensor.shape) if field is None else field.contents()))
