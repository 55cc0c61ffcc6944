"""Safetensors files of a checkpoint: what their headers say, and single tensors from them."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.files import read_json

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
_SUMS = "qua2sedimo.crc32"
_SUMMING = 4  # threads: more wait for the disk
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


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Names, dtypes and shapes of the tensors of a safetensors file; no tensor is read.

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
        header.pop("__metadata__", None)
        tensors = {name: _entry(entry) for name, entry in header.items()}
        end = _end_of_data([(*entry["data_offsets"], tensors[name].nbytes) for name, entry in header.items()])
    except OSError as error:
        raise Qua2SeDiMoError(f"cannot read {path}: {error.strerror or error}", DAMAGED_FILE) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Qua2SeDiMoError(f"{path} has an unreadable header: {error}", DAMAGED_FILE) from error
    if size != 8 + length + end:
        raise Qua2SeDiMoError(
            f"{path} is truncated or altered: {size} bytes, its header says {8 + length + end}", DAMAGED_FILE
        )
    return tensors


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """CRC-32 of a tensor's bytes; ``before`` is that of bytes that precede them."""
    return zlib.crc32(data, before)


def checksum_metadata(sums: Mapping[str, int]) -> dict[str, str]:
    """The entry of a file's metadata that :func:`check_sums` reads."""
    return {_SUMS: json.dumps({name: f"{value:08x}" for name, value in sums.items()}, separators=(",", ":"))}


def check_sums(path: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if a tensor of the file has not the checksum in the file's metadata.

    So tensors of one shape that were swapped, and altered bytes, are noticed. A file without checksums passes. Read in
    pieces of a megabyte, by some threads: nothing of the file stays in memory.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    stored = (header.pop("__metadata__", None) or {}).get(_SUMS)
    if stored is None:
        return
    try:
        sums = {name: int(value, 16) for name, value in json.loads(stored).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Qua2SeDiMoError(f"{path} has unreadable checksums: {error}", DAMAGED_FILE) from error
    spans = {name: [8 + length + offset for offset in entry["data_offsets"]] for name, entry in header.items()}
    threads = min(_SUMMING, os.cpu_count() or 1)
    parts = [dict(list(spans.items())[i::threads]) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        found = {name: sum_ for part in pool.map(lambda part: _sums_of(path, part), parts) for name, sum_ in part}
    wrong = [name for name in spans if sums.get(name) != found[name]]
    if wrong:
        raise Qua2SeDiMoError(f"tensor '{wrong[0]}' in {path} is not what was exported", DAMAGED_FILE)


def _sums_of(path: Path, spans: Mapping[str, list[int]]) -> list[tuple[str, int]]:
    """(name, CRC-32) of the bytes of each span of the file."""
    made = []
    with path.open("rb") as handle:
        for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
            handle.seek(begin)
            left, found = end - begin, 0
            while left and (piece := handle.read(min(left, 1 << 20))):  # shorter meanwhile: the sum is not right either
                found, left = checksum(piece, found), left - len(piece)
            made.append((name, found))
    return made


def _entry(entry: dict) -> StoredTensor:
    shape = tuple(entry["shape"])
    if entry["dtype"] not in _ITEM_SIZE or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"tensor of type {entry['dtype']!r}, shape {list(shape)}")
    return StoredTensor(entry["dtype"], shape)


def _end_of_data(spans: list[tuple[int, int, int]]) -> int:
    """Where the last tensor ends; tensors (begin, end, bytes) must follow without gap or overlap."""
    position = 0
    for begin, end, nbytes in sorted(spans):
        if begin != position or end - begin != nbytes:
            raise ValueError(f"a tensor of {nbytes} bytes at {begin} to {end}, expected at {position}")
        position = end
    return position


def read_headers(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """The entries of several shards together. Raises if two of them hold a tensor of the same name."""
    found: dict[str, StoredTensor] = {}
    for path in paths:
        header = read_header(path)
        twice = found.keys() & header.keys()
        if twice:
            raise Qua2SeDiMoError(f"tensor '{min(twice)}' is in more than one file, e.g. {path}", DAMAGED_FILE)
        found.update(header)
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


def shard_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that a model folder's index names, or its only one.

    Raises :class:`Qua2SeDiMoError` if there is none, the index is damaged, or one that it names is missing.
    """
    stem = WEIGHTS if variant is None else f"{WEIGHTS}.{variant}"
    index = folder / f"{WEIGHTS}.safetensors.index{'' if variant is None else '.' + variant}.json"
    if not index.is_file():
        single = folder / f"{stem}.safetensors"
        if not single.is_file():
            raise Qua2SeDiMoError(f"{folder} holds no {stem}.safetensors", "Save the model with safe_serialization.")
        return [single]
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise Qua2SeDiMoError(f"{index} names no files", DAMAGED_FILE)
    files = [folder / name for name in sorted(set(names.values()))]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise Qua2SeDiMoError(f"shard {missing[0]} is missing", DAMAGED_FILE)
    return files
