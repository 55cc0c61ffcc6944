"""Safetensors files of a checkpoint: what their headers say, and single tensors from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json

#: What diffusers names the files of a model.
WEIGHTS = "diffusion_pytorch_model"
#: Bytes of a number of each float type of the format.
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_ITEM_SIZE = {
    **FLOATS,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_MOST_HEADER_BYTES = 100_000_000
DAMAGED_FILE = "The checkpoint is damaged or incomplete: download it or export it again."


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_SIZE[self.dtype]


@dataclass(frozen=True)
class FileLayout:
    """What the header of a safetensors file says: its tensors, the metadata, and the bytes (begin, end) of the file
    that each tensor lies in, in order.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    spans: dict[str, tuple[int, int]]
    metadata: dict[str, str]


def read_layout(path: Path) -> FileLayout:
    """The header of a safetensors file; no tensor is read.

    Raises :class:`Qua2SeDiMoError` if the file is not one, or does not end where its header says.
    """
    if path.suffix != ".safetensors":
        raise Qua2SeDiMoError(f"{path} is not a safetensors file", DAMAGED_FILE)
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
                raise Qua2SeDiMoError(f"{path} is truncated: {size} bytes do not hold its header", DAMAGED_FILE)
            header = json.loads(handle.read(length))
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = {name: _entry(entry) for name, entry in header.items()}
        offsets = sorted((*entry["data_offsets"], name) for name, entry in header.items())
        end = _end_of_data([(first, last, tensors[name].nbytes) for first, last, name in offsets])
    except OSError as error:
        raise Qua2SeDiMoError(f"cannot read {path}: {error.strerror or error}", DAMAGED_FILE) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Qua2SeDiMoError(f"{path} has an unreadable header: {error}", DAMAGED_FILE) from error
    if size != 8 + length + end:
        raise Qua2SeDiMoError(
            f"{path} is truncated or altered: {size} bytes, its header says {8 + length + end}", DAMAGED_FILE
        )
    spans = {name: (8 + length + first, 8 + length + last) for first, last, name in offsets}
    return FileLayout(path, tensors, spans, metadata)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Names, dtypes and shapes of the tensors of a safetensors file, as :func:`read_layout` finds them."""
    return read_layout(path).tensors


def _entry(entry: dict) -> StoredTensor:
    shape = tuple(entry["shape"])
    if entry["dtype"] not in _ITEM_SIZE or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"tensor of type {entry['dtype']!r}, shape {list(shape)}")
    return StoredTensor(entry["dtype"], shape)


def _end_of_data(spans: list[tuple[int, int, int]]) -> int:
    """Where the last tensor ends; tensors (begin, end, bytes), by begin, must follow without gap or overlap."""
    position = 0
    for begin, end, nbytes in spans:
        if begin != position or end - begin != nbytes:
            raise ValueError(f"a tensor of {nbytes} bytes at {begin} to {end}, expected at {position}")
        position = end
    return position


def all_tensors(layouts: Iterable[FileLayout]) -> dict[str, StoredTensor]:
    """The tensors of several shards together. Raises if two of them hold a tensor of the same name."""
    found: dict[str, StoredTensor] = {}
    for layout in layouts:
        twice = found.keys() & layout.tensors.keys()
        if twice:
            raise Qua2SeDiMoError(f"tensor '{min(twice)}' is in more than one file, e.g. {layout.path}", DAMAGED_FILE)
        found.update(layout.tensors)
    return found


class Checkpoint:
    """The tensors of a diffusers model folder by name, read one at a time; no model is made.

    Raises :class:`Qua2SeDiMoError` if there are no safetensors files, or one is missing, truncated or damaged.
    """

    def __init__(self, folder: Path, variant: str | None = None) -> None:
        self.folder = folder
        self._file: dict[str, Path] = {}
        for path in shard_files(folder, variant):
            self._file |= dict.fromkeys(read_header(path), path)

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def __call__(self, name: str) -> torch.Tensor:
        """A copy of the tensor: the file is mapped only meanwhile, so that no page of it stays resident."""
        if name not in self._file:
            raise Qua2SeDiMoError(f"{self.folder} holds no tensor '{name}'", DAMAGED_FILE)
        try:
            with safe_open(self._file[name], "pt") as handle:
                tensor: torch.Tensor = handle.get_tensor(name)
                return tensor.clone()
        except (OSError, SafetensorError) as error:
            raise Qua2SeDiMoError(
                f"{self._file[name]}: tensor '{name}' cannot be read: {error}", DAMAGED_FILE
            ) from error


def weight_names(variant: str | None = None) -> tuple[str, str]:
    """Names of the index of a model's weights, and of the file that holds them all where there is no index."""
    end = "" if variant is None else f".{variant}"
    return f"{WEIGHTS}.safetensors.index{end}.json", f"{WEIGHTS}{end}.safetensors"


def shard_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that a model folder's index names, or its only one.

    Raises :class:`Qua2SeDiMoError` if there is none, the index is damaged, or one that it names is missing.
    """
    index, single = (folder / name for name in weight_names(variant))
    if not index.is_file():
        if not single.is_file():
            raise Qua2SeDiMoError(f"{folder} holds no {single.name}", "Save the model with safe_serialization.")
        return [single]
    files = indexed_files(index)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise Qua2SeDiMoError(f"shard {missing[0]} is missing", DAMAGED_FILE)
    return files


def indexed_files(index: Path) -> list[Path]:
    """The files beside it that an index names, be they there or not; :class:`Qua2SeDiMoError` if it is damaged."""
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise Qua2SeDiMoError(f"{index} names no files", DAMAGED_FILE)
    return [index.parent / name for name in sorted(set(names.values()))]
