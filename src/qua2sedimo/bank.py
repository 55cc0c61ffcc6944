"""The option bank: every option of every layer, packed, on disk, memory-mapped.

``bank/0007.safetensors`` holds all options of layer 7 (in search-space order): ``uaq-4.codes``, ``uaq-4.scale``
and so on, with the layer's name and each option's error in its metadata. ``bank/index.json`` repeats the errors of all
layers, so that they can be read without codes, and has a checksum per file. Layer files are written atomically, and
their checksums are then appended to ``bank/checksums.jsonl``: an interrupted build continues with the first missing or
damaged layer. Every file is compared with its checksum on first use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_document, read_json, write_json, write_via
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.quantizers import METHODS, QuantizedWeight, check_half, dequantize_weight, each, quantization_error

FORMAT = 1
_PIECE = 1 << 20  # bytes hashed at a time
_REBUILD = "Move the bank folder away; `qua2sedimo quantize STUDY` builds it again."
_REBUILD_FILE = "Move the file away; `qua2sedimo quantize STUDY` makes it again."
_INDEX, _SUMS = "index.json", "checksums.jsonl"


@dataclass(frozen=True)
class OptionError:
    """Error of one option of one layer: mean |e|^2.4 per weight, and relative MSE ‖e‖²/‖W‖²."""

    loss: float
    relative_mse: float


class Bank:
    """Reads options of one search space from a bank folder; :meth:`build` creates or completes the folder."""

    def __init__(self, folder: Path, space: SearchSpace, owner: str) -> None:
        """Open a finished bank; ``owner`` identifies space and weights, and must be that of the build.

        Raises :class:`Qua2SeDiMoError` if the index is damaged or of another owner.
        """
        self.folder, self.space = folder, space
        index = read_document(folder / _INDEX, FORMAT, _REBUILD)
        if index.pop("checksum", None) not in (None, _digest(index)):  # older banks have none
            raise Qua2SeDiMoError(f"{folder / _INDEX} is damaged: its checksum differs", _REBUILD_FILE)
        if index.get("owner") != owner:
            raise Qua2SeDiMoError(f"{folder} was built from other weights or for other options", _REBUILD)
        self.errors: dict[str, dict[Option, OptionError]] = {
            layer: {Option.parse(o): OptionError(*e) for o, e in entry["errors"].items()}
            for layer, entry in index["layers"].items()
        }
        self._checksums = {layer: entry["sha256"] for layer, entry in index["layers"].items()}
        self._dtype = {layer: getattr(torch, entry["dtype"]) for layer, entry in index["layers"].items()}
        self._files: dict[str, Any] = {}

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
    ) -> Bank:
        """Quantize missing or damaged layers; ``weights(layer)`` gives a layer's tensor, ``progress`` gets layers done.

        Raises :class:`Qua2SeDiMoError` naming the layer if its weights hold NaN or infinity.
        """
        folder.mkdir(parents=True, exist_ok=True)
        label = folder / "owner.json"
        if label.exists() and read_json(label) != owner:
            raise Qua2SeDiMoError(f"{folder} was begun for other weights or other options", _REBUILD)
        write_json(label, owner)
        for leftover in folder.glob(".*.tmp"):  # of a build that was killed
            leftover.unlink(missing_ok=True)

        known, writing = _known_checksums(folder), Lock()

        def entry(position: int) -> tuple[str, dict[str, Any]]:
            layer = space.layers[position]
            path = _file(folder, position)
            checksum = _sha256(path) if layer in known and path.exists() else ""
            if checksum != known.get(layer) or _about(path)["layer"] != layer:
                with _named(layer):
                    _write_layer(path, layer, weights(layer), space.options[layer])
                checksum = _sha256(path)
                with writing, (folder / _SUMS).open("a", encoding="utf-8") as sums:
                    sums.write(json.dumps([layer, checksum]) + "\n")
            about = _about(path)
            return layer, {"sha256": checksum, "errors": about["errors"], "dtype": about["dtype"]}

        layers: dict[str, Any] = {}
        for layer, content in each(entry, range(len(space.layers)), workers):
            layers[layer] = content
            progress(len(layers))
        index = {"format": FORMAT, "owner": owner, "layers": layers}
        write_json(folder / _INDEX, {**index, "checksum": _digest(index)})
        return cls(folder, space, owner)

    def verify(self) -> None:
        """Compare every file with its checksum; raises :class:`Qua2SeDiMoError` naming the first that differs."""
        for layer in self.space.layers:
            self._intact(layer)

    def get(self, layer: str, option: Option) -> QuantizedWeight:
        """The packed weight of a layer under an option, mapped from disk.

        Raises :class:`Qua2SeDiMoError` naming file and layer if the file is missing or damaged; it is compared with its
        checksum on first use.
        """
        if layer not in self._files:
            path = self._intact(layer)
            try:
                self._files[layer] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise Qua2SeDiMoError(f"{path} (layer '{layer}') cannot be read: {error}", _REBUILD_FILE) from error
        tensors = self._files[layer]
        names = METHODS[option.method].parameter_shapes(self.space.shapes[layer], option.bits)
        try:
            return QuantizedWeight(
                option.method, option.bits, self.space.shapes[layer], self._dtype[layer],
                tensors.get_tensor(f"{option}.codes"),
                {name: tensors.get_tensor(f"{option}.{name}") for name in names},
            )  # fmt: skip
        except SafetensorError as error:
            raise Qua2SeDiMoError(f"bank has no option '{option}' for layer '{layer}': {error}", _REBUILD) from error

    def _intact(self, layer: str) -> Path:
        """The layer's file; raises :class:`Qua2SeDiMoError` if it is missing or its checksum differs."""
        path = _file(self.folder, self.space.layers.index(layer))
        try:
            damaged = _sha256(path) != self._checksums[layer]
        except OSError as error:
            why = error.strerror or error
            raise Qua2SeDiMoError(f"{path} (layer '{layer}') is missing or damaged: {why}", _REBUILD_FILE) from error
        if damaged:
            raise Qua2SeDiMoError(
                f"{path} (layer '{layer}') is missing or damaged: its checksum differs", _REBUILD_FILE
            )
        return path

    def relative_mse(self, configuration: Mapping[str, Option]) -> float:
        """Sum over layers of relative MSE, the training-free predictor of damage."""
        return sum(self.errors[layer][option].relative_mse for layer, option in configuration.items())

    def values(self, configuration: Configuration) -> dict[str, QuantizedWeight]:
        return {layer: self.get(layer, option) for layer, option in configuration.items()}


def stored_weight(weight: torch.Tensor) -> torch.Tensor:
    """The 16-bit tensor that is quantized: bf16 unchanged, any other dtype as fp16.

    Raises :class:`Qua2SeDiMoError` if a finite weight is beyond the range of fp16.
    """
    if weight.dtype in (torch.bfloat16, torch.float16):
        return weight
    check_half(weight)
    return weight.to(torch.float16)


@contextmanager
def _named(layer: str) -> Iterator[None]:
    """Prefix errors of a quantizer with the layer's name."""
    try:
        yield
    except Qua2SeDiMoError as error:
        raise Qua2SeDiMoError(f"layer '{layer}': {error.message}", error.remedy) from error


def _file(folder: Path, position: int) -> Path:
    return folder / f"{position:04d}.safetensors"


def _about(path: Path) -> dict[str, Any]:
    """A layer file's metadata; a single entry, since safetensors writes several in random order."""
    with safe_open(path, "pt") as handle:
        return dict(json.loads((handle.metadata() or {})["about"]))


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        while piece := handle.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of its formatting."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _known_checksums(folder: Path) -> dict[str, str]:
    """Checksums of layer files by layer: from the index, or from an unfinished build."""
    found: dict[str, str] = {}
    with suppress(FileNotFoundError):
        for line in (folder / _SUMS).read_bytes().splitlines():
            with suppress(ValueError, TypeError):  # a truncated or damaged line: its layer is quantized again
                layer, checksum = json.loads(line)
                found[layer] = checksum
    with suppress(Qua2SeDiMoError, KeyError, TypeError, AttributeError):  # a damaged index is written again
        layers = read_document(folder / _INDEX, FORMAT, _REBUILD)["layers"]
        found |= {layer: entry["sha256"] for layer, entry in layers.items()}
    return found


def _write_layer(path: Path, layer: str, weight: torch.Tensor, options: tuple[Option, ...]) -> None:
    tensors: dict[str, torch.Tensor] = {}
    errors: dict[str, tuple[float, float]] = {}
    for method in dict.fromkeys(o.method for o in options):
        bits = [o.bits for o in options if o.method == method]
        for value in METHODS[method].quantize(weight, bits):
            option = str(Option(method, value.bits))
            tensors[f"{option}.codes"] = value.codes.cpu()
            tensors |= {f"{option}.{name}": t.cpu().contiguous() for name, t in value.parameters.items()}
            errors[option] = quantization_error(weight, dequantize_weight(value))
    about = {"layer": layer, "errors": errors, "dtype": str(weight.dtype).removeprefix("torch.")}
    write_via(path, lambda temporary: save_file(tensors, temporary, metadata={"about": json.dumps(about)}))
