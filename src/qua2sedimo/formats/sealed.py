"""Checksums that files carry themselves: of the content of a JSON document, of everything in a safetensors file.

Whatever is read of a study is compared with such a checksum when it is first used: that of the file itself, or that in
the index of its folder. Files of earlier versions have none, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import parse_json, unreadable, write_via
from qua2sedimo.formats.tensorfiles import FileLayout, read_layout, tensor_bytes

#: The entry of a document, and of a safetensors file's metadata, that holds its checksum.
CHECKSUM = "checksum"
#: The one metadata entry of our safetensors files, JSON: safetensors writes several in random order.
ABOUT = "about"
_PIECE = 1 << 20

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def content_digest(content: Any) -> str:
    """SHA-256 of plain data, independent of how it is formatted as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum."""
    return {**content, CHECKSUM: content_digest(dict(content))}


def unsealed(content: Mapping[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object without its checksum, if it has one; raises :class:`Qua2SeDiMoError` if that differs."""
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    if CHECKSUM in content and content[CHECKSUM] != content_digest(rest):
        raise Qua2SeDiMoError(f"{path} is damaged or was changed: its checksum differs", remedy)
    return rest


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor | np.ndarray], about: Mapping[str, Any] | None = None
) -> None:
    """Write a safetensors file with ``about`` (plain data) and a checksum of everything in its metadata.

    Raises :class:`Qua2SeDiMoError` naming a tensor of a type that such files cannot hold, such as complex numbers.
    """
    plain = {name: _tensor(t).detach().cpu().contiguous() for name, t in tensors.items()}
    for name, tensor in plain.items():
        if tensor.dtype not in _CODES:
            raise Qua2SeDiMoError(f"cannot write {path}: tensor '{name}' is of type {tensor.dtype}")
    entries = {**(about or {})}
    found = _start(entries)
    for name in sorted(plain):
        _add_header(found, name, _CODES[plain[name].dtype], tuple(plain[name].shape))
        found.update(tensor_bytes(plain[name]))
    metadata = {ABOUT: json.dumps({**entries, CHECKSUM: found.hexdigest()})}
    nbytes = sum(t.numel() * t.element_size() for t in plain.values())
    write_via(path, lambda temporary: save_file(plain, temporary, metadata=metadata), nbytes)


def load_tensors(path: Path, remedy: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, ``about``) of a file by :func:`save_tensors`, or of one without a checksum.

    Raises :class:`Qua2SeDiMoError` with the remedy if the file is missing or differs from its checksum.
    """
    about = check_tensors(path, remedy)
    try:
        with safe_open(path, "pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Qua2SeDiMoError(f"{path} is missing or damaged: {error}", remedy) from error


def check_tensors(path: Path, remedy: str) -> dict[str, Any]:
    """What a safetensors file says about itself; raises :class:`Qua2SeDiMoError` as :func:`load_tensors` does."""
    try:
        layout = read_layout(path)
        about = parse_json(layout.metadata.get(ABOUT, "{}"))
        if not isinstance(about, dict):
            raise ValueError(f"it says of itself {about!r}")
        wanted = about.pop(CHECKSUM, None)
        if wanted is not None and wanted != _found(layout, about):
            raise ValueError("its checksum differs")
    except Qua2SeDiMoError as error:
        if isinstance(error.__cause__, OSError):
            raise unreadable(path, error.__cause__, remedy) from error
        raise Qua2SeDiMoError(error.message, remedy) from error
    except (OSError, ValueError, TypeError) as error:
        raise Qua2SeDiMoError(f"{path} is missing or damaged: {error}", remedy) from error
    return about


def _found(layout: FileLayout, about: Mapping[str, Any]) -> str:
    found = _start(about)
    with layout.path.open("rb", buffering=0) as handle:
        for name in sorted(layout.tensors):
            _add_header(found, name, layout.tensors[name].dtype, layout.tensors[name].shape)
            begin, end = layout.spans[name]
            handle.seek(begin)
            while begin < end and (piece := handle.read(min(_PIECE, end - begin))):
                found.update(piece)
                begin += len(piece)
    return str(found.hexdigest())


def _start(about: Mapping[str, Any]) -> Any:
    return hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())


def _add_header(found: Any, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    found.update(json.dumps([name, dtype, list(shape)]).encode())


def _tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
