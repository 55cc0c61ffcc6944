"""Safetensors files: what their headers say, whether a model finds what it needs, and writing shards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.files import write_json

WEIGHTS = "diffusion_pytorch_model"
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_ITEM_SIZE = {
    **_FLOATS,
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
_CODE = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL"}
_MOST_HEADER_BYTES = 100_000_000
_REMEDY = "The checkpoint is damaged or incomplete: download it or export it again."


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
        raise Qua2SeDiMoError(f"{path} is not a safetensors file", _REMEDY)
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
                raise Qua2SeDiMoError(f"{path} is truncated: {size} bytes do not hold its header", _REMEDY)
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _entry(entry) for name, entry in header.items()}
        end = _end_of_data([(*entry["data_offsets"], tensors[name].nbytes) for name, entry in header.items()])
    except OSError as error:
        raise Qua2SeDiMoError(f"cannot read {path}: {error.strerror or error}", _REMEDY) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Qua2SeDiMoError(f"{path} has an unreadable header: {error}", _REMEDY) from error
    if size != 8 + length + end:
        raise Qua2SeDiMoError(
            f"{path} is truncated or altered: {size} bytes, its header says {8 + length + end}", _REMEDY
        )
    return tensors


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
            raise Qua2SeDiMoError(f"tensor '{min(twice)}' is in more than one file, e.g. {path}", _REMEDY)
        found.update(header)
    return found


def model_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers, those of a module with several names once, under the first."""
    persistent = model.state_dict().keys()
    for prefix, module in model.named_modules():
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, tensor in own:
            full = f"{prefix}.{name}" if prefix else name
            if full in persistent:
                yield full, tensor


def check_complete(model: nn.Module, stored: Mapping[str, StoredTensor], ignored: Iterable[str] = ()) -> None:
    """Raise :class:`Qua2SeDiMoError` unless ``stored`` is exactly what ``model`` (may be on meta) needs.

    ``ignored`` are names that may be stored though the model does not know them.
    """
    expected = dict(model_tensors(model))
    for name, tensor in expected.items():
        if name not in stored:
            raise Qua2SeDiMoError(f"tensor '{name}' is missing from the checkpoint", _REMEDY)
        found, shape = stored[name], tuple(tensor.shape)
        if found.shape != shape:
            raise Qua2SeDiMoError(
                f"tensor '{name}': expected shape {list(shape)}, the checkpoint has {list(found.shape)}",
                _REMEDY,
            )
        fits = found.dtype in _FLOATS if tensor.is_floating_point() else found.dtype == _CODE.get(tensor.dtype)
        if not fits:
            wanted = "a float type" if tensor.is_floating_point() else str(tensor.dtype)
            raise Qua2SeDiMoError(f"tensor '{name}': expected {wanted}, the checkpoint has {found.dtype}", _REMEDY)
    extra = stored.keys() - expected.keys() - set(ignored) - model.state_dict().keys()
    if extra:
        raise Qua2SeDiMoError(f"the checkpoint holds a tensor '{min(extra)}' that the model does not have", _REMEDY)


class ShardWriter:
    """Writes tensors as they come into shards of about ``limit`` bytes, and at :meth:`close` their index.

    There is an index even for one shard: with an index diffusers lets the quantizer look at the files before
    it reads any tensor.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._pending: dict[str, torch.Tensor] = {}
        self._bytes, self._total = 0, 0
        self._shards: list[list[str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > self._limit:
            self._flush()
        self._pending[name] = tensor
        self._bytes += size
        self._total += size

    def close(self) -> list[Path]:
        """The finished files, which carry their number and the count in their names."""
        self._flush()
        count = len(self._shards)
        files = [self._folder / f"{WEIGHTS}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for i, file in enumerate(files):
            self._unnamed(i).replace(file)
        names = {name: file.name for file, shard in zip(files, self._shards) for name in shard}
        index = {"metadata": {"total_size": self._total}, "weight_map": names}
        write_json(self._folder / f"{WEIGHTS}.safetensors.index.json", index)
        return files

    def _unnamed(self, number: int) -> Path:
        return self._folder / f".shard-{number}.safetensors"

    def _flush(self) -> None:
        seen: set[int] = set()
        for name, tensor in self._pending.items():  # safetensors refuses tensors that share memory
            pointer = tensor.untyped_storage().data_ptr()
            if tensor.numel() and pointer in seen:
                self._pending[name] = tensor.clone()
            seen.add(pointer)
        save_file(self._pending, self._unnamed(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0
