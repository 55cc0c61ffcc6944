"""Calibration statistics in a study's folder: moments per source, squared gradients per layer, recorded calls.

statistics/index.json              what was observed, the sources and their units; written last
statistics/NNNN.safetensors        the moment of source N: the lower triangle of each block, fp32
statistics/checksums.jsonl         checksums of the files finished so far
statistics/gradients.safetensors   squared gradients by module
statistics/calls/                  calls of the denoiser (:mod:`qua2sedimo.statistics.calls`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qua2sedimo.denoisers import WeightLayer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import Document
from qua2sedimo.formats.files import file_digest, write_via
from qua2sedimo.formats.finished import add_finished, finished
from qua2sedimo.quantizers import Moment
from qua2sedimo.statistics.calls import RecordedCalls
from qua2sedimo.statistics.sources import Source

INDEX = "index.json"
_REMEDY = "Move statistics/index.json away; `qua2sedimo observe STUDY` makes what is damaged again."
_OTHER = "Move the folder 'statistics' away; `qua2sedimo observe STUDY` makes it again."
_SUMS = "checksums.jsonl"
_LARGE = 1024  # inputs of a moment, above which it is stored in 16 bits
_KEPT = 4  # moments in memory at a time


class StatisticsIndex(Document):
    """index.json: ``key`` identifies weights, inputs and settings; ``sources`` are (units, inputs, sees, positions,
    checksum of the moment's file); ``uncalled`` are units that no observed call reached; ``gradients`` is the checksum
    of their file, empty if there are none."""

    remedy: ClassVar[str] = _REMEDY

    format: Literal[1] = 1
    key: str
    images: int
    sources: list[tuple[tuple[str, ...], int, tuple[str, ...], int, str]]
    uncalled: list[str]
    gradients: str


class Statistics:
    """Finished statistics of a study; moments are read when asked for."""

    def __init__(self, folder: Path, key: str, layers: Mapping[str, WeightLayer]) -> None:
        """Open a folder; raises :class:`Qua2SeDiMoError` if it is damaged or was observed for another ``key``."""
        self.folder, self._layers = folder, layers
        self.index = StatisticsIndex.load(folder / INDEX)
        if self.index.key != key:
            raise Qua2SeDiMoError(f"{folder} was observed with other weights, prompts, arguments or settings", _OTHER)
        self._place = {unit: i for i, source in enumerate(self.index.sources) for unit in source[0]}
        self._read = lru_cache(_KEPT)(self._load)

    @staticmethod
    def is_finished(folder: Path) -> bool:
        """Whether statistics are complete in this folder."""
        return (folder / INDEX).exists()

    @cached_property
    def digest(self) -> str:
        """Eight hex digits that identify these statistics."""
        return hashlib.sha256(self.index.model_dump_json().encode()).hexdigest()[:8]

    @property
    def has_gradients(self) -> bool:
        """Whether gradients were observed."""
        return bool(self.index.gradients)

    def part(self, component: str) -> Statistics:
        """The statistics of a component: of the only denoiser, named "", all of them."""
        return self

    @property
    def without_gradients(self) -> tuple[str, ...]:
        """Names of denoisers whose gradients were not observed; of the only one, ""."""
        return () if self.has_gradients else ("",)

    @property
    def images(self) -> int:
        """Images that were observed."""
        return self.index.images

    @cached_property
    def sources(self) -> list[Source]:
        return [Source(units, inputs, sees) for units, inputs, sees, _, _ in self.index.sources]

    @property
    def calls(self) -> RecordedCalls:
        found = RecordedCalls(self.folder / "calls")
        if not found.complete:
            raise Qua2SeDiMoError(f"{found.folder}: recorded calls are missing", _REMEDY)
        return found

    def moment(self, unit: str) -> Moment | None:
        """The second moment of a unit's inputs; None if it was not called or the moment cannot be used."""
        found = self._read(self._place[unit]) if unit in self._place else None
        return found if found is not None and found.usable else None

    def forget_moments(self) -> None:
        """Free the moments that are kept for being asked for again."""
        self._read.cache_clear()

    def gradient(self, unit: str) -> torch.Tensor | None:
        """Squared gradients at a unit's output channels, fp64 [channels]; None if there are none."""
        return self._gradients.get(self._layers[unit].module)

    def note(self, unit: str) -> str | None:
        """Why a unit is rounded to nearest levels, or by an uncertain moment; None if nothing is unusual."""
        if unit not in self._place:
            return "it was never called while images were generated: rounded to the nearest level"
        place = self._place[unit]
        found = self._read(place)
        if not found.usable:
            return f"{found.problem}: rounded to the nearest level"
        _, inputs, _, rows, _ = self.index.sources[place]
        if rows < inputs:
            return f"observed at {rows:,} positions, fewer than its {inputs:,} inputs: observe more images"
        return None

    def notes(self) -> dict[str, str]:
        """:meth:`note` of every unit that has one."""
        units = [unit for source in self.index.sources for unit in source[0]] + self.index.uncalled
        return {unit: note for unit in units if (note := self.note(unit)) is not None}

    @cached_property
    def _gradients(self) -> dict[str, torch.Tensor]:
        if not self.index.gradients:
            return {}
        path = gradients_file(self.folder)
        _check(path, self.index.gradients)
        return _load(path)

    def _load(self, place: int) -> Moment:
        path = moment_file(self.folder, place)
        _check(path, self.index.sources[place][4])
        return read_moment(path, self.sources[place])


def moment_file(folder: Path, place: int) -> Path:
    return folder / f"{place:04d}.safetensors"


def gradients_file(folder: Path) -> Path:
    return folder / "gradients.safetensors"


def write_moment(path: Path, moment: Moment, rows: int) -> None:
    """Write the lower triangles; the matrices are symmetric. Of a large one, the diagonal in fp32 and correlations in
    fp16: half the disk, and errors of the layer's output that differ by less than rounding in another order."""
    tensors = {}
    for i, block in enumerate(moment.blocks):
        block = block.cpu()
        a, b = torch.tril_indices(len(block), len(block))
        if len(block) > _LARGE:
            tensors[f"diagonal.{i}"] = block.diagonal().clone()
            spread = _spread(block.diagonal())
            tensors[f"block.{i}"] = (block[a, b] / spread[a] / spread[b]).half()
        else:
            tensors[f"block.{i}"] = block[a, b].contiguous()
    nbytes = moment_bytes([len(block) for block in moment.blocks])
    write_via(path, lambda temporary: save_file(tensors, temporary, metadata={"rows": str(rows)}), nbytes)


def add_moment(path: Path) -> None:
    """Note that the file of a moment is finished."""
    add_finished(path.parent / _SUMS, path.name, file_digest(path))


def moment_bytes(blocks: Sequence[int]) -> int:
    """Bytes on disk of a moment with blocks of these sizes, but for the header."""
    return sum(n * (n + 1) // 2 * (2 if n > _LARGE else 4) + (4 * n if n > _LARGE else 0) for n in blocks)


def _spread(diagonal: torch.Tensor) -> torch.Tensor:
    """By what rows and columns of a moment are divided: its correlations remain, which fp16 holds."""
    return torch.where(diagonal > 0, diagonal, 1.0).sqrt()


def known_checksums(folder: Path) -> dict[str, str]:
    """Checksums of the files that were finished, by name; of statistics that are complete or not."""
    return finished(folder / _SUMS)  # the file of a damaged line is made again


def read_moment(path: Path, source: Source) -> Moment:
    """The moment of a source; raises :class:`Qua2SeDiMoError` if the file is missing or of other sizes."""
    tensors, blocks = _load(path), []
    for i, size in enumerate(source.blocks):
        packed = tensors.get(f"block.{i}")
        if packed is None or packed.numel() != size * (size + 1) // 2:
            raise Qua2SeDiMoError(f"{path} does not hold a moment of {source.inputs} inputs", _REMEDY)
        a, b = torch.tril_indices(size, size)
        diagonal = tensors.get(f"diagonal.{i}")
        if diagonal is not None:
            spread = _spread(diagonal)
            packed = packed.float() * spread[a] * spread[b]
        block = torch.empty(size, size)
        block[a, b] = packed
        block[b, a] = packed
        if diagonal is not None:
            block.diagonal().copy_(diagonal)
        blocks.append(block)
    return Moment(tuple(blocks))


def write_gradients(folder: Path, gradients: Mapping[str, torch.Tensor]) -> None:
    content = {name: t.contiguous() for name, t in gradients.items()}
    write_via(gradients_file(folder), lambda temporary: save_file(content, temporary))
    add_finished(folder / _SUMS, gradients_file(folder).name, file_digest(gradients_file(folder)))


def _check(path: Path, checksum: str) -> None:
    if file_digest(path) != checksum:
        raise Qua2SeDiMoError(f"{path} is missing or damaged: its checksum differs", _REMEDY)


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise Qua2SeDiMoError(f"{path} is missing or damaged: {error}", _REMEDY) from error
