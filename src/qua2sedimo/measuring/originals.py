"""The original weights of a live denoiser, to be put back: read anew from its files, or kept where there are none."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import WEIGHTS, Checkpoint

#: The tensor of a unit (layer or part) as a file holds it, in any float type; None if it holds none.
Source = Callable[[str], torch.Tensor | None]


class Originals:
    """Gives back the weight each unit had, bit for bit.

    ``weights`` are the live tensors, still original. A unit for which ``source`` gives just these bits, once cast to
    the live type, is not copied: it is read again when asked for, and compared with its checksum. Of the others a copy
    is kept, in 16 bits where that holds every number exactly.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], source: Source | None = None) -> None:
        self._source = source
        self._types = {name: weight.dtype for name, weight in weights.items()}
        self._checksums: dict[str, int] = {}
        self._copies: dict[str, torch.Tensor] = {}
        for name, weight in weights.items():
            read = self._read(name)
            if read is not None and _same_bits(read, weight.cpu()):
                self._checksums[name] = _checksum(read)
            else:
                self._copies[name] = compact(weight)

    def __call__(self, name: str) -> torch.Tensor:
        """The unit's original weight, in the live type.

        Raises :class:`Qua2SeDiMoError` if the file it is read from has changed since.
        """
        if name in self._copies:
            return self._copies[name].to(self._types[name])
        weight = self._read(name)
        if weight is None or _checksum(weight) != self._checksums[name]:
            raise Qua2SeDiMoError(
                f"layer '{name}': the checkpoint's file has changed since the pipeline was loaded",
                "Put the file back and start again; nothing measured is lost.",
            )
        return weight

    @property
    def copied_bytes(self) -> int:
        """Memory that copies take."""
        return sum(t.numel() * t.element_size() for t in self._copies.values())

    def _read(self, name: str) -> torch.Tensor | None:
        found = self._source(name) if self._source is not None else None
        return None if found is None else found.to(self._types[name]).contiguous()


def checkpoint_source(checkpoint: Checkpoint | None, layers: Mapping[str, WeightLayer]) -> Source | None:
    """Reads units from a checkpoint's files."""
    if checkpoint is None:
        return None

    def read(name: str) -> torch.Tensor | None:
        unit = layers[name]
        if f"{unit.module}.weight" not in checkpoint:
            return None
        whole = checkpoint(f"{unit.module}.weight")
        return whole if unit.span is None else whole[:, unit.span[0] : unit.span[1]]

    return read


def files_of(denoiser: nn.Module) -> Checkpoint | None:
    """The files a denoiser says it was loaded from, be it a folder or the hub's cache; None if there are none.

    They may have been another model's, or changed since: :class:`Originals` compares every tensor.
    """
    folder = Path(str(getattr(denoiser, "config", {}).get("_name_or_path") or "/nowhere"))
    if not folder.is_dir() or not any(folder.glob(f"{WEIGHTS}.safetensors*")):
        return None
    try:
        return Checkpoint(folder)
    except Qua2SeDiMoError:  # damaged files serve no one; the weights in memory are whole, and will be copied
        return None


def compact(weight: torch.Tensor) -> torch.Tensor:
    """A copy in the smaller float type that holds every number exactly."""
    if weight.element_size() > 2:
        for dtype in (torch.float16, torch.bfloat16):
            small = weight.to(dtype)
            if _same_bits(small.to(weight.dtype), weight):
                return small
    return weight.clone()


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit, the signs of zeros included, and NaN equal to itself."""
    return a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(_bits(tensor).numpy().data)
