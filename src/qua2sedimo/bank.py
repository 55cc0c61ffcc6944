"""The option bank: every option of every layer, packed, on disk, memory-mapped.

``bank/0007.safetensors`` holds all options of layer 7 (in search-space order): ``uaq-4.codes``, ``uaq-4.scale``
and so on, with the layer's name and each option's error in its metadata. ``bank/index.json`` repeats the errors
of all layers with a checksum per file, so that they can be read without touching codes. A layer file appears by
rename when it is complete: a build that was killed goes on with the first missing layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_document, read_json, write_json, write_via
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.quantizers import METHODS, QuantizedWeight, each, quantization_error

FORMAT = 1
_REBUILD = "Delete the bank folder; it will be built again."


@dataclass(frozen=True)
class OptionError:
    """Error of one option of one layer: mean |e|^2.4 per weight, and relative MSE ‖e‖²/‖W‖²."""

    loss: float
    relative_mse: float


class Bank:
    """Reads options of one search space from a bank folder; :meth:`build` makes or completes the folder."""

    def __init__(self, folder: Path, space: SearchSpace, owner: str) -> None:
        """Open a finished bank; ``owner`` names space and weights, and must be that of the build."""
        self.folder, self.space = folder, space
        index = read_document(folder / "index.json", FORMAT, _REBUILD)
        if index.get("owner") != owner:
            raise Qua2SeDiMoError(f"{folder} was built from other weights or for other options", _REBUILD)
        self.errors: dict[str, dict[Option, OptionError]] = {
            layer: {Option.parse(o): OptionError(*e) for o, e in entry["errors"].items()}
            for layer, entry in index["layers"].items()
        }
        self._checksums = {layer: entry["sha256"] for layer, entry in index["layers"].items()}
        self._dtype = {layer: getattr(torch, entry["dtype"]) for layer, entry in index["layers"].items()}
        self._files: dict[str, Any] = {}

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
        """Quantize what is still missing; ``weights(layer)`` gives a layer's tensor, ``progress`` layers done.

        Raises :class:`Qua2SeDiMoError` naming the layer if its weights hold NaN or infinity.
        """
        folder.mkdir(parents=True, exist_ok=True)
        label = folder / "owner.json"
        if label.exists() and read_json(label) != owner:
            raise Qua2SeDiMoError(f"{folder} was begun for other weights or other options", _REBUILD)
        write_json(label, owner)
        for leftover in folder.glob(".*.tmp"):  # of a build that was killed
            leftover.unlink(missing_ok=True)

        def entry(position: int) -> tuple[str, dict[str, Any]]:
            layer = space.layers[position]
            path = _file(folder, position)
            if not _complete(path, layer):
                with _named(layer):
                    _write_layer(path, layer, weights(layer), space.options[layer])
            about = _about(path)
            checksum = hashlib.sha256(path.read_bytes()).hexdigest()
            return layer, {"sha256": checksum, "errors": about["errors"], "dtype": about["dtype"]}

        layers: dict[str, Any] = {}
        for layer, content in each(entry, range(len(space.layers)), workers):
            layers[layer] = content
            progress(len(layers))
        write_json(folder / "index.json", {"format": FORMAT, "owner": owner, "layers": layers})
        return cls(folder, space, owner)

    def verify(self) -> None:
        """Compare every file with its checksum; raises :class:`Qua2SeDiMoError` naming the first that differs."""
        for position, layer in enumerate(self.space.layers):
            path = _file(self.folder, position)
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != self._checksums[layer]:
                raise Qua2SeDiMoError(f"{path} (layer '{layer}') is missing or damaged", _REBUILD)

    def get(self, layer: str, option: Option) -> QuantizedWeight:
        """The packed weight of a layer under an option, mapped from disk."""
        if layer not in self._files:
            path = _file(self.folder, self.space.layers.index(layer))
            try:
                self._files[layer] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise Qua2SeDiMoError(f"{path} (layer '{layer}') cannot be read: {error}", _REBUILD) from error
        tensors = self._files[layer]
        names = METHODS[option.method].parameter_shapes(self.space.shapes[layer], option.bits)
        try:
            return QuantizedWeight(
                option.method,
                option.bits,
                self.space.shapes[layer],
                self._dtype[layer],
                tensors.get_tensor(f"{option}.codes"),
                {name: tensors.get_tensor(f"{option}.{name}") for name in names},
            )
        except SafetensorError as error:
            raise Qua2SeDiMoError(f"bank has no option '{option}' for layer '{layer}': {error}", _REBUILD) from error

    def relative_mse(self, configuration: Mapping[str, Option]) -> float:
        """Sum over layers of relative MSE: the training-free predictor of damage."""
        return sum(self.errors[layer][option].relative_mse for layer, option in configuration.items())

    def values(self, configuration: Configuration) -> dict[str, QuantizedWeight]:
        return {layer: self.get(layer, option) for layer, option in configuration.items()}


def stored_weight(weight: torch.Tensor) -> torch.Tensor:
    """The 16-bit tensor that is quantized: bf16 as it is, anything else as fp16.

    Raises :class:`Qua2SeDiMoError` if a finite weight is beyond the range of fp16.
    """
    if weight.dtype in (torch.bfloat16, torch.float16):
        return weight
    half = weight.to(torch.float16)
    lost = int((torch.isinf(half) & torch.isfinite(weight)).sum())
    if lost:
        raise Qua2SeDiMoError(
            f"{lost} of {weight.numel()} weights are beyond ±65504, the range of float16",
            "Load the pipeline in torch.bfloat16.",
        )
    return half


@contextmanager
def _named(layer: str) -> Iterator[None]:
    """Say in an error of a quantizer which layer it was."""
    try:
        yield
    except Qua2SeDiMoError as error:
        raise Qua2SeDiMoError(f"layer '{layer}': {error.message}", error.remedy) from error


def _file(folder: Path, position: int) -> Path:
    return folder / f"{position:04d}.safetensors"


def _about(path: Path) -> dict[str, Any]:
    """What a layer file says of itself: one metadata entry, since safetensors writes several in random order."""
    with safe_open(path, "pt") as handle:
        return dict(json.loads((handle.metadata() or {})["about"]))


def _complete(path: Path, layer: str) -> bool:
    """Whether the file is whole and of this layer; a damaged one is made anew."""
    try:
        return path.exists() and bool(_about(path)["layer"] == layer)
    except (OSError, SafetensorError, KeyError, ValueError):
        return False


def _write_layer(path: Path, layer: str, weight: torch.Tensor, options: tuple[Option, ...]) -> None:
    tensors: dict[str, torch.Tensor] = {}
    errors: dict[str, tuple[float, float]] = {}
    for method in dict.fromkeys(o.method for o in options):
        bits = [o.bits for o in options if o.method == method]
        for value in METHODS[method].quantize(weight, bits):
            option = str(Option(method, value.bits))
            tensors[f"{option}.codes"] = value.codes.cpu()
            tensors |= {f"{option}.{name}": t.cpu().contiguous() for name, t in value.parameters.items()}
            errors[option] = quantization_error(weight, value.dequantize())
    about = {"layer": layer, "errors": errors, "dtype": str(weight.dtype).removeprefix("torch.")}
    write_via(path, lambda temporary: save_file(tensors, temporary, metadata={"about": json.dumps(about)}))
