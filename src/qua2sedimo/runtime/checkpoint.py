"""Packed checkpoints: self-contained diffusers folders in which the denoiser is stored quantized.

    OUT/qua2sedimo.json      format version, sizes, library versions, and provenance from the caller
    OUT/model_index.json     and the folders of all other components, as saved by the pipeline
    OUT/transformer/         config.json with quantization_config; *.safetensors shards and their index

A layer ``a.b`` is stored as ``a.b.codes`` (uint8) and 16-bit parameters: ``a.b.scale`` (``row``), also ``a.b.zero``
(``uaq``), ``a.b.codebook`` (K-Means), or ``a.b.first``, ``a.b.scale_in`` and ``a.b.scale_out`` (``lowrank``). They are
bit patterns of fp16, or of bf16 for bf16 weights, stored as int16. A denoiser exported without a pipeline has the files
of ``transformer/`` directly in OUT. The format version is 4, or 5 if a layer has an option that version 4 lacks:
``row``, ``lowrank``, or one bit.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import ConfigMixin, DiffusionPipeline
from torch import nn

from qua2sedimo.denoisers import parse_unit, weight_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_writable, read_json, write_json
from qua2sedimo.formats.tensorfiles import all_tensors, read_layout
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.runtime.backend import Qua2SeDiMoConfig
from qua2sedimo.runtime.intact import config_digest
from qua2sedimo.runtime.modules import Part, QuantizedLayer, Storage, checked_tensors, covers, plain_class
from qua2sedimo.runtime.publish import forget_paths
from qua2sedimo.runtime.shards import ShardWriter, check_complete, model_tensors
from qua2sedimo.runtime.table import LayerTable, install_empty_layers, layer_modules
from qua2sedimo.runtime.units import NO_COPIES, Copies, groups_of

INFO = "qua2sedimo.json"
SHARD_BYTES = 2_000_000_000
_COMPONENTS = ("transformer", "unet")

Values = Mapping[str, QuantizedWeight] | Iterable[tuple[str, QuantizedWeight]]


@dataclass(frozen=True)
class PackedSize:
    """Bytes of the quantized layers on disk, their number of weights, and the bytes of all tensors of the denoiser."""

    quantized_bytes: int
    weights: int
    denoiser_bytes: int

    @property
    def average_bits(self) -> float:
        return 8 * self.quantized_bytes / self.weights if self.weights else 0.0


def save_packed(
    model: DiffusionPipeline | nn.Module,
    component: str | None,
    values: Values,
    out: Path,
    extra: Mapping[str, Any] | None = None,
    copies: Copies = NO_COPIES,
    act_bits: int | None = None,
) -> PackedSize:
    """Write a pipeline or denoiser to the folder ``out``, with the layers in ``values`` packed.

    ``component`` names the pipeline's denoiser (None: ``transformer`` or ``unet``). ``values`` maps unit names to
    quantized weights; it is read once, in order, and may be a generator of pairs. ``copies`` (module name → names) are
    stored once. ``act_bits`` is the bit width of activations in the loaded model (None: not quantized). ``extra`` is
    stored in ``qua2sedimo.json``. Other float tensors of the denoiser are stored in 16 bits. An earlier export in
    ``out`` is replaced.

    Raises :class:`Qua2SeDiMoError` and leaves ``out`` unchanged if it has other content, a weight does not fit its
    layer, or the written files could not be loaded.
    """

    def write(denoiser: Any, folder: Path) -> tuple[PackedSize, dict[str, Any]]:
        size, version = _write_denoiser(denoiser, values, copies, act_bits, folder)
        return size, about_export(size, version, extra or {})

    return write_export(model, component, out, write)


def write_export(
    model: DiffusionPipeline | nn.Module,
    component: str | None,
    out: Path,
    write: Callable[[Any, Path], tuple[PackedSize, dict[str, Any]]],
) -> PackedSize:
    """Write an export in one step: the pipeline's other components as they are, and its denoiser by ``write``.

    ``write`` gets the denoiser and the folder for its files; it returns its size and entries of ``qua2sedimo.json``.
    Raises :class:`Qua2SeDiMoError` and leaves ``out`` unchanged if it has other content, or ``write`` raises.
    """
    out = Path(out).resolve()
    check_export_folder(out)
    pipeline = model if isinstance(model, DiffusionPipeline) else None
    component = _component(pipeline, component) if pipeline is not None else None
    denoiser = getattr(pipeline, component) if component is not None else model
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # torch.compile wraps
    _refuse_unsuitable(denoiser)
    with _written_beside(out) as folder:
        if pipeline is not None and component is not None:
            _save_others(pipeline, component, denoiser, folder)
        size, info = write(denoiser, folder / (component or ""))
        write_json(folder / INFO, {"component": component, **info})
    return size


def about_export(size: PackedSize, version: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of ``qua2sedimo.json``; raises :class:`Qua2SeDiMoError` if ``extra`` cannot be written as JSON."""
    try:
        json.dumps(extra)
    except (TypeError, ValueError) as error:
        raise Qua2SeDiMoError(f"extra provenance cannot be written as JSON: {error}") from error
    sizes = {"average_bits": size.average_bits, **asdict(size)}
    versions = {"format_version": version, "diffusers": diffusers.__version__}
    return {**versions, **sizes, "extra": dict(extra)}


def _write_denoiser(
    denoiser: Any, values: Values, copies: Copies, act_bits: int | None, folder: Path
) -> tuple[PackedSize, int]:
    """Write the denoiser to ``folder``: its size, and its format version."""
    modules = layer_modules(denoiser)
    groups = groups_of(modules, copies)
    writer = ShardWriter(folder, SHARD_BYTES)
    stored: dict[str, list[Part]] = {}
    nbytes = weights = 0
    for unit, value in values.items() if isinstance(values, Mapping) else values:
        name, part, tensors = _stored(unit, value, modules, groups)
        if part in stored.setdefault(name, []) or any(part.span == other.span for other in stored[name]):
            raise Qua2SeDiMoError(f"layer '{unit}' has two quantized weights")
        stored[name].append(part)
        nbytes += value.nbytes
        weights += math.prod(value.shape)
        for buffer, tensor in tensors.items():
            writer.add(f"{name}.{buffer}", tensor)
    _refuse_unfinished(modules, stored)
    same = {name: groups[name][1:] for name in stored if name in groups}
    _refuse_shared_weights(modules, {name: (name, *same.get(name, ())) for name in stored})
    half = torch.bfloat16 if denoiser.dtype == torch.bfloat16 else torch.float16
    copied = {copy for names in same.values() for copy in names}
    packed = {f"{name}.weight" for name in (*stored, *copied)} | {f"{name}.bias" for name in copied}
    for name, tensor in model_tensors(denoiser):
        if name not in packed:
            writer.add(name, in_16_bits(name, tensor, half))
    files = writer.close()
    table = LayerTable.of(modules, stored, same)
    config = json.loads(denoiser.to_json_string())
    config.pop("_name_or_path", None)  # a local path; exports are published
    quantization = Qua2SeDiMoConfig.of(table, config_digest(type(denoiser), config), act_bits)
    write_json(folder / "config.json", {**config, "quantization_config": quantization.to_dict()})
    size = _verified(type(denoiser), config, table, files, PackedSize(nbytes, weights, 0))
    return size, quantization.format_version


def _verified(
    cls: type[Any], config: dict[str, Any], table: LayerTable, files: list[Path], promised: PackedSize
) -> PackedSize:
    """Check files and sizes as the loader will, against a model built from the config alone."""
    headers = all_tensors(map(read_layout, files))
    with init_empty_weights():
        model = cls.from_config(config)
    check_complete(model, table, headers)
    layers = install_empty_layers(model, table)
    found = sum(headers[f"{name}.{b}"].nbytes for name, layer in layers.items() for b in layer.packed_names())
    if found != promised.quantized_bytes:
        raise Qua2SeDiMoError(f"quantized layers take {found} bytes on disk instead of {promised.quantized_bytes}")
    return PackedSize(found, promised.weights, sum(tensor.nbytes for tensor in headers.values()))


def _stored(
    unit: str, value: QuantizedWeight, modules: Mapping[str, nn.Module], groups: Mapping[str, tuple[str, ...]]
) -> tuple[str, Part, dict[str, torch.Tensor]]:
    """(name of the module that stores the unit, its part, its tensors by buffer name)."""
    module, span = parse_unit(unit)
    if module not in modules:
        raise Qua2SeDiMoError(f"the denoiser has no Linear or Conv layer '{module}'")
    name = groups.get(module, (module,))[0]
    part = Part(span, Storage.of(value))
    try:
        plain_class(modules[name])
        return name, part, checked_tensors(modules[name], part, value)
    except Qua2SeDiMoError as error:
        raise Qua2SeDiMoError(f"layer '{unit}': {error.message}", error.remedy) from error


def _refuse_unfinished(modules: Mapping[str, nn.Module], stored: dict[str, list[Part]]) -> None:
    """Sort the parts of each layer; raise :class:`Qua2SeDiMoError` if they do not cover the layer."""
    for name, parts in stored.items():
        parts.sort(key=lambda part: part.span or (0, 0))
        if not covers(parts, tuple(weight_of(modules[name]).shape)):
            raise Qua2SeDiMoError(f"parts {[part.span for part in parts]} do not cover layer '{name}'")


def in_16_bits(name: str, tensor: torch.Tensor, half: torch.dtype) -> torch.Tensor:
    """A float tensor of more than 16 bits cast to ``half``; raises :class:`Qua2SeDiMoError` if it does not fit."""
    if not tensor.is_floating_point() or tensor.element_size() <= 2:
        return tensor
    cast = tensor.to(half)
    if not torch.equal(torch.isfinite(cast), torch.isfinite(tensor)):
        raise Qua2SeDiMoError(
            f"tensor '{name}' has values beyond the range of {half}",
            "Convert the denoiser to torch.bfloat16 first.",
        )
    return cast


def _refuse_unsuitable(denoiser: Any) -> None:
    name = type(denoiser).__name__
    if not isinstance(denoiser, nn.Module) or not isinstance(denoiser, ConfigMixin):
        raise Qua2SeDiMoError(f"expected a diffusers denoiser, got {name}")
    if getattr(denoiser, "hf_quantizer", None) or any(isinstance(m, QuantizedLayer) for m in denoiser.modules()):
        raise Qua2SeDiMoError(f"{name} is already quantized", "Export from the unquantized checkpoint.")


def _refuse_shared_weights(modules: Mapping[str, nn.Module], groups: Mapping[str, tuple[str, ...]]) -> None:
    """Raise :class:`Qua2SeDiMoError` if a stored weight is shared with a module outside its group of copies."""
    owners = {id(modules[name].weight): name for name in groups}
    for name, module in modules.items():
        owner = owners.get(id(module.weight), name)
        if name not in groups.get(owner, (name,)):
            raise Qua2SeDiMoError(
                f"layers '{owner}' and '{name}' share a weight but are not listed as copies",
                "Leave these two layers unquantized.",
            )


def _component(pipeline: DiffusionPipeline, component: str | None) -> str:
    for name in (component,) if component else _COMPONENTS:
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return name
    raise Qua2SeDiMoError(
        f"{type(pipeline).__name__} has no denoiser '{component or ' or '.join(_COMPONENTS)}'",
        f"Name one of its components: {', '.join(pipeline.components)}.",
    )


def _save_others(pipeline: DiffusionPipeline, component: str, denoiser: nn.Module, folder: Path) -> None:
    """Save all other components with the pipeline's own method; a stand-in for the denoiser saves nothing."""
    stand_in = copy.copy(denoiser)
    object.__setattr__(stand_in, "save_pretrained", lambda *_, **__: None)
    light = copy.copy(pipeline)
    light.__dict__[component] = stand_in
    light.save_pretrained(folder, safe_serialization=True)
    for name, part in pipeline.components.items():
        if part is not None and name != component and not (folder / name).is_dir():
            raise Qua2SeDiMoError(f"diffusers cannot save component '{name}' of {type(pipeline).__name__}")
    forget_paths(folder)


def check_export_folder(out: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if ``out`` holds something that is no export, or cannot be written."""
    check_writable(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise Qua2SeDiMoError(f"{out} is a file, not a folder", "Choose another folder.")
    info = read_json(out / INFO) if (out / INFO).is_file() else None
    ours = isinstance(info, dict) and "format_version" in info
    if any(out.iterdir()) and not ours:
        raise Qua2SeDiMoError(f"{out} is not empty and was not written by this program", "Choose another folder.")


@contextmanager
def _written_beside(out: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``out`` if the body succeeds and is removed if it fails."""
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    except OSError as error:
        if old.exists() and not out.exists():
            old.rename(out)
        raise Qua2SeDiMoError(
            f"cannot write {out}: {error.strerror or error}", "Free disk space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
