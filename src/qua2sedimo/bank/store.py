"""The option bank: the options of every layer, packed, on disk, memory-mapped.

With calibration statistics, options are rounded with compensation, and their errors are those of the layer's output.
Options that another one dominates (no more bytes, no more error) can be left out; then :attr:`Bank.space` has fewer
options than were tried.

``bank/0007.safetensors`` holds all options of layer 7 (in search-space order): ``uaq-4.codes``, ``uaq-4.scale``
and so on, with the layer's name and each option's error in its metadata. ``bank/index.json`` repeats the errors of all
layers, so that they can be read without codes, and has a checksum per file. Layer files are written atomically, and
their checksums are then appended to ``bank/checksums.jsonl``: an interrupted build continues with the first missing or
damaged layer. ``bank/changes.safetensors`` holds what options change in the denoiser's output. Every file is compared
with its checksum on first use.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qua2sedimo.bank.making import Observed, OptionError, named, write_layer
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import (
    check_space,
    read_json,
    read_object,
    sha256,
    unreadable,
    write_json,
)
from qua2sedimo.formats.finished import add_finished, finished
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.sealed import sealed, unsealed
from qua2sedimo.formats.temporary import clear_leftovers
from qua2sedimo.option_changes import LayerChanges, OptionChanges
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.quantizers import (
    LEVEL_METHODS,
    METHODS,
    QuantizedWeight,
    each,
)
from qua2sedimo.system.elsewhere import Elsewhere, written_elsewhere
from qua2sedimo.system.memory import return_memory

FORMAT = 2
_BEFORE = 1  # errors without those of outputs; every option kept
_REBUILD = "Move the bank folder away; `qua2sedimo quantize STUDY` builds it again."
_REBUILD_FILE = "Move the file away; `qua2sedimo quantize STUDY` makes it again."
_INDEX, _SUMS, _CHANGES = "index.json", "checksums.jsonl", "changes.safetensors"


@dataclass(frozen=True)
class Making:
    """How layers are made: ``weights(layer)`` and ``observed(layer)`` give their tensors and statistics, ``tried`` has
    their options, and ``prune`` leaves out those that another dominates."""

    weights: Callable[[str], torch.Tensor]
    observed: Callable[[str], Observed]
    prune: bool
    tried: SearchSpace


class Bank:
    """Reads options of one search space from a bank folder; :meth:`build` creates or completes the folder."""

    def __init__(self, folder: Path, space: SearchSpace, owner: str) -> None:
        """Open a finished bank; ``owner`` identifies space and weights, and must be that of the build.

        ``space`` are the options that were tried; the bank's own are those it holds. Raises :class:`Qua2SeDiMoError` if
        the index is damaged or of another owner.
        """
        index = _read_index(folder)
        if index.get("owner") != owner:
            raise Qua2SeDiMoError(f"{folder} was built from other weights or for other options", _REBUILD)
        try:
            self.errors: dict[str, dict[Option, OptionError]] = {
                layer: {Option.parse(o): OptionError(*e) for o, e in entry["errors"].items()}
                for layer, entry in index["layers"].items()
            }
            self.space = space.restricted({layer: list(errors) for layer, errors in self.errors.items()})
            self._checksums = {layer: entry["sha256"] for layer, entry in index["layers"].items()}
            self._dtype = {layer: getattr(torch, entry["dtype"]) for layer, entry in index["layers"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, Qua2SeDiMoError) as error:
            raise Qua2SeDiMoError(f"{folder / _INDEX} is damaged: {error}", _REBUILD_FILE) from error
        self.folder, self._owner = folder, owner
        self._place = {layer: place for place, layer in enumerate(self.space.layers)}
        self._files: dict[str, Any] = {}
        self._read: dict[tuple[str, Option], QuantizedWeight] = {}  # mapped, so no copies
        self._compared: set[str] = set()  # layers whose file is as it was written

    @staticmethod
    def is_finished(folder: Path, space: SearchSpace) -> bool:
        """Whether the index and all layer files exist; no file is read."""
        return all(p.exists() for p in (folder / _INDEX, *(_file(folder, i) for i in range(len(space.layers)))))

    @classmethod
    def build(
        cls,
        folder: Path,
        space: SearchSpace,
        owner: str,
        weights: Callable[[str], torch.Tensor],
        progress: Callable[[int], object] = lambda done: None,
        workers: int = 1,
        observed: Callable[[str], Observed] = lambda layer: Observed(),
        prune: bool = False,
        tried: SearchSpace | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> Bank:
        """Quantize missing or damaged layers.

        ``weights(layer)`` gives a layer's tensor [channels, …], ``observed(layer)`` its statistics, ``progress`` gets
        layers done. ``prune`` leaves out options that another dominates. ``tried``: the space with the options that are
        made, if these are not all. ``elsewhere`` does the work if it is given, by :func:`quantize_layer`.

        If another process builds the same bank, this one waits for it, and opens what it has built.

        Raises :class:`Qua2SeDiMoError` naming the layer if its weights hold NaN or infinity, or if the disk has not
        enough room.
        """
        waited: list[bool] = []
        with alone(folder, lambda: waited.append(True)):
            if not (waited and cls.is_finished(folder, space)):
                made = Making(weights, observed, prune, tried or space)
                cls._build(folder, space, owner, made, progress, workers, elsewhere)
        return cls(folder, space, owner)

    @classmethod
    def _build(
        cls, folder: Path, space: SearchSpace, owner: str, making: Making, progress: Callable[[int], object],
        workers: int, elsewhere: Elsewhere | None,
    ) -> None:  # fmt: skip
        label = folder / "owner.json"
        if label.exists() and read_json(label) != owner:
            raise Qua2SeDiMoError(f"{folder} was begun for other weights or other options", _REBUILD)
        missing = [layer for i, layer in enumerate(space.layers) if not _file(folder, i).exists()]
        check_space(folder, bank_bytes(making.tried, making.prune, missing), "the bank")
        write_json(label, owner)
        clear_leftovers(folder)
        for leftover in folder.glob(".*.tmp"):  # of a build that an earlier version began
            if leftover.is_file():
                leftover.unlink(missing_ok=True)

        known, writing = _known_checksums(folder), Lock()

        def lacks(position: int) -> bool:
            layer, path = space.layers[position], _file(folder, position)
            there = layer in known and path.exists()
            return not there or sha256(path) != known[layer] or _about(path)["layer"] != layer

        def make(position: int) -> None:
            layer = space.layers[position]
            options = making.tried.options[layer]
            quantize_layer(folder, space, layer, options, making.weights, making.observed, making.prune)
            keep(position)

        def keep(position: int) -> None:
            with writing:
                layer = space.layers[position]
                known[layer] = sha256(_file(folder, position))
                add_finished(folder / _SUMS, layer, known[layer])

        def made_elsewhere(elsewhere: Elsewhere) -> Iterator[None]:
            options = {place: [str(o) for o in making.tried.options[space.layers[place]]] for place in lacking}
            jobs = [{"do": "quantize", "layer": space.layers[place], "options": options[place]} for place in lacking]
            for job, _ in elsewhere.each(jobs, "quantizing layers"):
                written_elsewhere(_file(folder, lacking[job]))
                keep(lacking[job])
                yield

        total = len(space.layers)
        lacking = [position for position in range(total) if lacks(position)]
        made = each(make, lacking, workers) if elsewhere is None else made_elsewhere(elsewhere)
        for done, _ in enumerate(made, total - len(lacking) + 1):  # not from 0: it tells the time left
            progress(done)
        if not lacking:
            progress(total)
        layers = {}
        for position, layer in enumerate(space.layers):
            about = _about(_file(folder, position))
            layers[layer] = {"sha256": known[layer], "errors": about["errors"], "dtype": about["dtype"]}
        index = {"format": FORMAT, "owner": owner, "layers": layers}
        write_json(folder / _INDEX, sealed(index))

    def verify(self) -> None:
        """Compare every file with its checksum; raises :class:`Qua2SeDiMoError` naming the first that differs."""
        for layer in self.space.layers:
            self._intact(layer)

    def get(self, layer: str, option: Option) -> QuantizedWeight:
        """The packed weight of a layer under an option, mapped from disk.

        Raises :class:`Qua2SeDiMoError` naming file and layer if the file is missing or damaged; it is compared with its
        checksum on first use.
        """
        if (layer, option) not in self._read:
            self._read[layer, option] = self._mapped(layer, option)
        return self._read[layer, option]

    def forget(self, layer: str) -> None:
        """Close the layer's file, whose pages count as memory of this process while it is mapped."""
        self._files.pop(layer, None)
        for option in self.space.options[layer]:
            self._read.pop((layer, option), None)

    def _mapped(self, layer: str, option: Option) -> QuantizedWeight:
        if layer not in self._files:
            path = self._path(layer) if layer in self._compared else self._intact(layer)
            self._compared.add(layer)
            try:
                self._files[layer] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise Qua2SeDiMoError(f"{path} (layer '{layer}') cannot be read: {error}", _REBUILD_FILE) from error
        tensors = self._files[layer]
        names = METHODS[option.method].parameter_shapes(self.space.shapes[layer], option.number)
        try:
            return QuantizedWeight(
                option.method, option.number, self.space.shapes[layer], self._dtype[layer],
                tensors.get_tensor(f"{option}.codes"),
                {name: tensors.get_tensor(f"{option}.{name}") for name in names},
            )  # fmt: skip
        except SafetensorError as error:
            raise Qua2SeDiMoError(f"bank has no option '{option}' for layer '{layer}': {error}", _REBUILD) from error

    def _path(self, layer: str) -> Path:
        return _file(self.folder, self._place[layer])

    def _intact(self, layer: str) -> Path:
        """The layer's file; raises :class:`Qua2SeDiMoError` if it is missing or its checksum differs."""
        path = self._path(layer)
        try:
            damaged = sha256(path) != self._checksums[layer]
        except OSError as error:
            with named(layer):
                raise unreadable(path, error, _REBUILD_FILE) from error
        if damaged:
            raise Qua2SeDiMoError(
                f"{path} (layer '{layer}') is missing or damaged: its checksum differs", _REBUILD_FILE
            )
        return path

    def near(self, layer: str, bits: float) -> Option:
        """The option of a layer whose average bits are nearest to these: codes of levels, where it has some."""
        shape, options = self.space.shapes[layer], self.space.options[layer]
        codes = [o for o in options if o.method in LEVEL_METHODS] or options
        return min(codes, key=lambda o: abs(8 * o.nbytes(shape) / math.prod(shape) - bits))

    def error_sum(self, configuration: Mapping[str, Option]) -> float:
        """Sum over layers of relative errors, the training-free predictor of damage."""
        return sum(self.errors[layer][option].relative for layer, option in configuration.items())

    def costs(self) -> dict[str, dict[Option, float]] | None:
        """The squared change of the guided output that is expected of every option: the mean square of its
        :attr:`changes`, or in a bank that was not weighed Σ_c G_c·e_c; None without gradients.

        A layer without either has its relative error instead, times the median over the others of cost by relative
        error.
        """
        if self.changes.of:
            known = {layer: self.changes.mean_squares(layer) for layer in self.changes.of}
        else:
            known = {
                layer: {o: e.cost for o, e in errors.items() if e.cost is not None}
                for layer, errors in self.errors.items()
            }
        pairs = [(cost, self.errors[layer][o].relative) for layer, of in known.items() for o, cost in of.items()]
        ratios = [cost / relative for cost, relative in pairs if cost > 0 and relative > 0]
        if not ratios:
            return None
        usual = statistics.median(ratios)
        return {
            layer: {o: known.get(layer, {}).get(o, usual * e.relative) for o, e in errors.items()}
            for layer, errors in self.errors.items()
        }

    @cached_property
    def changes(self) -> OptionChanges:
        """What options change in the output; nothing in a bank that was not weighed.

        Raises :class:`Qua2SeDiMoError` if the file is damaged, or of another bank.
        """
        return OptionChanges.load(self.folder / _CHANGES, self.space, self._owner)

    def keep_changes(self, changes: Mapping[str, LayerChanges], complete: bool) -> None:
        """Store what options change, of all layers that can be weighed or of those so far."""
        self.changes = OptionChanges(self.space, dict(changes), complete)
        self.changes.save(self.folder / _CHANGES, self._owner)

    def values(self, configuration: Configuration) -> dict[str, QuantizedWeight]:
        """The packed weights of a configuration, by layer."""
        return {layer: self.get(layer, option) for layer, option in configuration.items()}


def quantize_layer(
    folder: Path, space: SearchSpace, layer: str, options: Sequence[Option], weights: Callable[[str], torch.Tensor],
    observed: Callable[[str], Observed], prune: bool,
) -> None:  # fmt: skip
    """Write the file of a layer of a bank, whose weight [channels, …] and statistics the functions give.

    Raises :class:`Qua2SeDiMoError` naming the layer.
    """
    path = _file(folder, space.layers.index(layer))
    with named(layer):
        write_layer(path, layer, weights(layer), tuple(options), observed(layer), prune)
    return_memory()


def bank_bytes(space: SearchSpace, prune: bool, layers: Sequence[str]) -> int:
    """The most bytes that options of these layers take, but for headers; of pruned ones, one method a width stays."""
    total = 0
    for layer in layers:
        sizes: dict[object, int] = {}
        for option in space.options[layer]:
            overhead = METHODS[option.method].overhead(option.number)
            key = (option.method == "lowrank", option.number, overhead) if prune else option
            sizes[key] = max(sizes.get(key, 0), option.nbytes(space.shapes[layer]))
        total += sum(sizes.values())
    return total


def _file(folder: Path, position: int) -> Path:
    return folder / f"{position:04d}.safetensors"


def _about(path: Path) -> dict[str, Any]:
    """A layer file's metadata; a single entry, since safetensors writes several in random order."""
    with safe_open(path, "pt") as handle:
        return dict(json.loads((handle.metadata() or {})["about"]))


def _known_checksums(folder: Path) -> dict[str, str]:
    """Checksums of layer files by layer: from the index, or from an unfinished build."""
    found = finished(folder / _SUMS)  # a layer of a damaged line is quantized again
    with suppress(Qua2SeDiMoError, KeyError, TypeError, AttributeError):  # a damaged index is written again
        layers = _read_index(folder)["layers"]
        found |= {layer: entry["sha256"] for layer, entry in layers.items()}
    return found


def _read_index(folder: Path) -> dict[str, Any]:
    """index.json of this format or the one before."""
    found = read_object(folder / _INDEX, _REBUILD_FILE)
    if found.get("format") not in (_BEFORE, FORMAT):
        raise Qua2SeDiMoError(f"{folder / _INDEX}: format {found.get('format')} is not {FORMAT}", _REBUILD)
    return unsealed(found, folder / _INDEX, _REBUILD_FILE)
