"""Safetensors files of a checkpoint: their headers, and single tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_space, read_json, refuse_special, unreadable, unwritable
from qua2sedimo.formats.float8 import FLOAT8, scaled, scaling_of
from qua2sedimo.formats.temporary import scratch_folder

#: Base name of the weight files that diffusers writes.
WEIGHTS = "diffusion_pytorch_model"
#: Base name of the weight files that transformers writes.
TEXT_WEIGHTS = "model"
#: Bytes per number of each float dtype of the format.
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, **dict.fromkeys(FLOAT8, 1)}
_ITEM_SIZE = {
    **FLOATS, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MOST_HEADER_BYTES = 100_000_000
_UNKNOWN_TYPE = "Start from the checkpoint in 16 bits, or download it again if this is it."
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
    """The header of a safetensors file: tensors, metadata, and the byte range (begin, end) of each, in file order."""

    path: Path
    tensors: dict[str, StoredTensor]
    spans: dict[str, tuple[int, int]]
    metadata: dict[str, str]


def read_layout(path: Path) -> FileLayout:
    """The header of a safetensors file; no tensor is read.

    Raises :class:`Qua2SeDiMoError` if it is not a safetensors file, or not as long as its header says.
    """
    if path.suffix != ".safetensors":
        raise Qua2SeDiMoError(f"{path} is not a safetensors file", DAMAGED_FILE)
    try:
        size = path.stat().st_size
        refuse_special(path, DAMAGED_FILE)
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
                raise Qua2SeDiMoError(f"is truncated: {size} bytes do not hold its header", DAMAGED_FILE)
            header = json.loads(handle.read(length))
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = {name: _entry(entry) for name, entry in header.items()}
        offsets = sorted((*entry["data_offsets"], name) for name, entry in header.items())
        end = _end_of_data([(first, last, tensors[name].nbytes) for first, last, name in offsets])
    except Qua2SeDiMoError as error:
        raise Qua2SeDiMoError(f"{path} {error.message}", error.remedy) from error
    except OSError as error:
        raise unreadable(path, error, DAMAGED_FILE) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Qua2SeDiMoError(f"{path} has an unreadable header: {error}", DAMAGED_FILE) from error
    if size != 8 + length + end:
        raise Qua2SeDiMoError(
            f"{path} is truncated or altered: {size} bytes, its header says {8 + length + end}", DAMAGED_FILE
        )
    spans = {name: (8 + length + first, 8 + length + last) for first, last, name in offsets}
    return FileLayout(path, tensors, spans, metadata)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Dtype and shape of each tensor of a safetensors file; raises as :func:`read_layout` does."""
    return read_layout(path).tensors


def _entry(entry: dict) -> StoredTensor:
    shape = tuple(entry["shape"])
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"a tensor of shape {list(shape)}")
    if entry["dtype"] not in _ITEM_SIZE:
        raise Qua2SeDiMoError(f"holds tensors of type {entry['dtype']!r}, which is not known here", _UNKNOWN_TYPE)
    return StoredTensor(entry["dtype"], shape)


def _end_of_data(spans: list[tuple[int, int, int]]) -> int:
    """Where the last tensor ends; raises ValueError if the sorted (begin, end, bytes) have gaps or overlaps."""
    position = 0
    for begin, end, nbytes in spans:
        if begin != position or end - begin != nbytes:
            raise ValueError(f"a tensor of {nbytes} bytes at {begin} to {end}, expected at {position}")
        position = end
    return position


def all_tensors(layouts: Iterable[FileLayout]) -> dict[str, StoredTensor]:
    """The tensors of all shards; raises :class:`Qua2SeDiMoError` if a name occurs in two of them."""
    found: dict[str, StoredTensor] = {}
    for layout in layouts:
        twice = found.keys() & layout.tensors.keys()
        if twice:
            raise Qua2SeDiMoError(f"tensor '{min(twice)}' is in more than one file, e.g. {layout.path}", DAMAGED_FILE)
        found.update(layout.tensors)
    return found


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, as in a file."""
    # A tensor of one element counts as contiguous whatever its stride is, as after expand(1); its bytes need stride 1.
    return torch.as_strided(tensor, (tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def as_stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself."""
    return tensor


class Checkpoint:
    """Reads the tensors of a diffusers model folder, or of one file, by name, one at a time, without building a model.

    Weights in 8-bit floats with scales are multiplied by them, in fp32; the scales are no tensors of their own.
    ``cast`` is applied to every tensor. Raises :class:`Qua2SeDiMoError` if there are no safetensors files, one is
    missing, truncated or damaged, or weights are quantized in a way that is not known here.
    """

    def __init__(
        self, place: Path, variant: str | None = None, cast: Callable[[str, torch.Tensor], torch.Tensor] = as_stored
    ) -> None:
        self.place, self._cast = place, cast
        layouts = [read_layout(path) for path in ([place] if place.is_file() else shard_files(place, variant))]
        self._file = {name: layout.path for layout in layouts for name in layout.tensors}
        every = all_tensors(layouts)
        types = {name: tensor.dtype for name, tensor in every.items()}
        shapes = {name: tensor.shape for name, tensor in every.items()}
        self.scaling = scaling_of(types, shapes, self._read, str(place))
        #: The tensors of the model by name, as they are stored.
        self.tensors = {name: tensor for name, tensor in every.items() if name not in self.scaling.others}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __call__(self, name: str) -> torch.Tensor:
        """A copy of the tensor; the file is mapped only during the call, so none of its pages stay resident."""
        if name not in self.tensors:
            raise Qua2SeDiMoError(f"{self.place} holds no tensor '{name}'", DAMAGED_FILE)
        tensor, scale = self._read(name), self.scaling.scales.get(name)
        return self._cast(name, tensor if scale is None else scaled(tensor, self._read(scale)))

    def _read(self, name: str) -> torch.Tensor:
        try:
            with safe_open(self._file[name], "pt") as handle:
                tensor: torch.Tensor = handle.get_tensor(name)
                return tensor.clone()
        except (OSError, SafetensorError) as error:
            raise Qua2SeDiMoError(
                f"{self._file[name]}: tensor '{name}' cannot be read: {error}", DAMAGED_FILE
            ) from error


def weight_names(variant: str | None = None, base: str = WEIGHTS) -> tuple[str, str]:
    """File names of the index of sharded weights, and of unsharded weights; ``base`` is how they begin."""
    end = "" if variant is None else f".{variant}"
    return f"{base}.safetensors.index{end}.json", f"{base}{end}.safetensors"


def shard_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The weight files of a model folder: those that its index lists, or its only one.

    Raises :class:`Qua2SeDiMoError` if there is none, the index is damaged, or a listed file is missing.
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
    """The files that an index lists, existing or not; raises :class:`Qua2SeDiMoError` if it is damaged."""
    content = read_json(index, DAMAGED_FILE)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise Qua2SeDiMoError(f"{index} lists no files", DAMAGED_FILE)
    return [index.parent / name for name in sorted(set(names.values()))]


@contextmanager
def scratch_file(tensors: Mapping[str, torch.Tensor], what: str) -> Iterator[Path]:
    """A safetensors file that is there only within, in the system's place for temporary files; ``what`` is done by it.

    Raises :class:`Qua2SeDiMoError` if there is no room for it.
    """
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    with scratch_folder() as folder:
        path = folder / "tensors.safetensors"
        check_space(path, nbytes, what)
        try:
            save_file(dict(tensors), path)
        except (OSError, SafetensorError) as error:
            raise unwritable(path, error, nbytes) from error
        del tensors  # they may take as much memory as the file does disk space
        yield path
