"""The original weights of a live denoiser, for restoring them: read again from its files, or copied without files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.denoisers.exact import bits, compact, same_bits
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import WEIGHTS, Checkpoint

#: Unit (layer or part) → its tensor in a checkpoint, in any float dtype; None if it has none.
Source = Callable[[str], torch.Tensor | None]


class Originals:
    """Returns the original weight of each unit, bit for bit.

    ``weights``: the live tensors, not quantized yet. A unit for which ``source`` gives the same bits, after a cast to
    the live dtype, is not copied: it is read again on request, and compared with its checksum. Other units are copied,
    in 16 bits where these hold every number exactly.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], source: Source | None = None) -> None:
        self._source = source
        self._types = {name: weight.dtype for name, weight in weights.items()}
        self._checksums: dict[str, int] = {}
        self._copies: dict[str, torch.Tensor] = {}
        for name, weight in weights.items():
            read = self._read(name)
            if read is not None and same_bits(read, weight.cpu()):
                self._checksums[name] = _checksum(read)
            else:
                self._copies[name] = compact(weight)

    def __call__(self, name: str) -> torch.Tensor:
        """The unit's original weight, in the live dtype.

        Raises :class:`Qua2SeDiMoError` if its file has changed since.
        """
        if name in self._copies:
            return self._copies[name].to(self._types[name])
        weight = self._read(name)
        if weight is None or _checksum(weight) != self._checksums[name]:
            raise Qua2SeDiMoError(
                f"layer '{name}': the checkpoint's file has changed since the pipeline was loaded",
                "Restore the file and run the command again; all measurements are kept.",
            )
        return weight

    @property
    def copied_bytes(self) -> int:
        """Memory of the copies, in bytes."""
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
    """The files a denoiser says it was loaded from, in a folder or the hub's cache; None if there are none.

    They may belong to another model or have changed since: :class:`Originals` compares every tensor.
    """
    config = getattr(denoiser, "config", None)
    folder = Path(str(config.get("_name_or_path") if isinstance(config, Mapping) else "") or "/nowhere")
    if not folder.is_dir() or not any(folder.glob(f"{WEIGHTS}.safetensors*")):
        return None
    try:
        return Checkpoint(folder)
    except Qua2SeDiMoError:  # damaged: the weights in memory, which are intact, will be copied
        return None


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(bits(tensor).numpy().data)
