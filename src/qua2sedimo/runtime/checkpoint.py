"""Packed checkpoints: self-contained diffusers folders in which the denoiser is stored quantized.

    OUT/qua2sedimo.json      format version, sizes, library versions, and provenance from the caller
    OUT/model_index.json     and the folders of all other components, as saved by the pipeline
    OUT/transformer/         config.json with quantization_config; *.safetensors shards and their index

A layer ``a.b`` is stored as ``a.b.codes`` (uint8) and 16-bit parameters: ``a.b.scale`` (``row``), also ``a.b.zero``
(``uaq``), ``a.b.codebook`` (K-Means), or ``a.b.first``, ``a.b.scale_in`` and ``a.b.scale_out`` (``lowrank``). They are
bit patterns of fp16, or of bf16 for bf16 weights, stored as int16. Block types of GGUF (``gguf_k`` and others) have
``a.b.d``, ``a.b.m``, ``a.b.dmin`` and ``a.b.scales``, always in fp16; ``half`` has ``a.b.exact`` alone, the weight. A
denoiser exported without a pipeline has the files of ``transformer/`` directly in OUT. The format version is 4, or 5 if
a layer has an option that version 4 lacks: ``row``, ``lowrank``, ``half``, a block type, or one bit.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from qua2sedimo.denoisers import parse_unit, weight_of
from qua2sedimo.denoisers.exact import compact, kept_exact
from qua2sedimo.denoisers.stored import dtype_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import check_space, check_writable, unwritable, write_json
from qua2sedimo.formats.temporary import put_in_place, temporary_folder
from qua2sedimo.formats.tensorfiles import all_tensors, read_layout
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.runtime.contents import allow_reading, carry_over, check_replaceable, write_info
from qua2sedimo.runtime.description import Qua2SeDiMoConfig
from qua2sedimo.runtime.intact import config_digest
from qua2sedimo.runtime.libraries import config_of, is_known, plain_model, weights_name, write_companions
from qua2sedimo.runtime.modules import Part, QuantizedLayer, Storage, checked_tensors, covers, plain_class
from qua2sedimo.runtime.publish import forget_paths
from qua2sedimo.runtime.shards import ShardWriter, check_complete, model_tensors
from qua2sedimo.runtime.table import LayerTable, install_empty_layers, layer_modules
from qua2sedimo.runtime.units import NO_COPIES, Copies, groups_of

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
    component: str | Sequence[str] | None,
    values: Values,
    out: Path,
    extra: Mapping[str, Any] | None = None,
    copies: Copies = NO_COPIES,
    act_bits: int | None = None,
) -> PackedSize:
    """Write a pipeline or denoiser to the folder ``out``, with the layers in ``values`` packed.

    ``component`` names the pipeline's denoiser (None: ``transformer`` or ``unet``), or several, whose units are then
    named ``COMPONENT.UNIT``. ``values`` maps unit names to
    quantized weights; it is read once, in order, and may be a generator of pairs. ``copies`` (module name → names) are
    stored once. ``act_bits`` is the bit width of activations in the loaded model (None: not quantized). ``extra`` is
    stored in ``qua2sedimo.json``. Other float tensors of the denoiser are stored in 16 bits, but exactly if its class
    keeps them in fp32. An earlier export in ``out`` is replaced in one step; what was added to it since, such as a
    README, stays.

    Raises :class:`Qua2SeDiMoError` and leaves ``out`` unchanged if it is no export, one of its files was changed, the
    disk has no room, a weight does not fit its layer, or the written files could not be loaded.
    """

    def write(denoiser: Any, own: Values, own_copies: Copies, folder: Path) -> tuple[PackedSize, int]:
        return _write_denoiser(denoiser, own, own_copies, act_bits, folder)

    return write_export(model, component, values, out, extra or {}, copies, write)


#: Writes a denoiser with these values and copies to a folder; returns its size, and the version of its format.
Write = Callable[[Any, Values, Copies, Path], tuple[PackedSize, int]]


def write_export(
    model: DiffusionPipeline | nn.Module, component: str | Sequence[str] | None, values: Values, out: Path,
    extra: Mapping[str, Any], copies: Copies, write: Write, form: str | None = None,
) -> PackedSize:  # fmt: skip
    """Write an export in one step: the pipeline's other components as they are, and each denoiser by ``write``.

    ``form`` names a format other than this package's own. Other arguments, and errors, are those of
    :func:`save_packed`; ``out`` stays unchanged if ``write`` raises.
    """
    out = Path(out).resolve()
    check_export_folder(out)
    pipeline = model if isinstance(model, DiffusionPipeline) else None
    parts = separate_denoisers(model, component, values, copies)
    denoisers = {name: denoiser for name, denoiser, *_ in parts}
    nbytes = _bytes_of(pipeline, list(denoisers.values()), values)
    check_space(out, nbytes, "the export")
    with _written_beside(out, nbytes) as folder:
        if pipeline is not None:
            _save_others(pipeline, denoisers, folder)
        written = [write(denoiser, own, own_copies, folder / name) for name, denoiser, own, own_copies in parts]
        size = PackedSize(*(sum(column) for column in zip(*(astuple(size) for size, _ in written))))
        version, dtype = max(version for _, version in written), dtype_of(next(iter(denoisers.values())))
        other = {} if form is None else {"format": form}
        write_info(folder, {**_info(tuple(denoisers), size, version, dtype, extra), **other})
    return size


def separate_denoisers(
    model: DiffusionPipeline | nn.Module, component: str | Sequence[str] | None, values: Values, copies: Copies
) -> list[tuple[str, nn.Module, Values, Copies]]:
    """Each denoiser to export: its component ("" without a pipeline), the module, and its values and copies by the
    names in it.

    Raises :class:`Qua2SeDiMoError` if there is no such component, or it is quantized already.
    """
    pipeline = model if isinstance(model, DiffusionPipeline) else None
    names = _components(pipeline, component) if pipeline is not None else ("",)
    denoisers = {name: getattr(pipeline, name) if name else model for name in names}
    denoisers = {name: getattr(d, "_orig_mod", d) for name, d in denoisers.items()}  # torch.compile wraps
    for denoiser in denoisers.values():
        _refuse_unsuitable(denoiser)
    return [(name, d, *_own(name, len(names) > 1, values, copies)) for name, d in denoisers.items()]


def _own(component: str, several: bool, values: Values, copies: Copies) -> tuple[Values, Copies]:
    """Values and copies of one of the denoisers, by the names in it."""
    if not several:
        return values, copies
    if not isinstance(values, Mapping):
        raise TypeError("the values of several denoisers are read several times: pass a mapping")
    start = f"{component}."

    def short(name: str) -> str:
        return name.removeprefix(start)

    return (
        {short(unit): value for unit, value in values.items() if unit.startswith(start)},
        {short(n): tuple(map(short, others)) for n, others in copies.items() if n.startswith(start)},
    )


def _info(
    components: Sequence[str], size: PackedSize, version: int, dtype: str, extra: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        json.dumps(extra)
    except (TypeError, ValueError) as error:
        raise Qua2SeDiMoError(f"extra provenance cannot be written as JSON: {error}") from error
    sizes = {"average_bits": size.average_bits, **asdict(size)}
    versions = {"format_version": version, "diffusers": diffusers.__version__}
    several = {"components": list(components)} if len(components) > 1 else {}
    return {
        **versions, "component": components[0] or None, **several, "dtype": dtype, **sizes, "extra": dict(extra)
    }  # fmt: skip


def _write_denoiser(
    denoiser: Any, values: Values, copies: Copies, act_bits: int | None, folder: Path
) -> tuple[PackedSize, int]:
    """Write the denoiser to ``folder``: its size, and its format version."""
    modules = layer_modules(denoiser)
    groups = groups_of(modules, copies)
    writer = ShardWriter(folder, SHARD_BYTES, weights_name(denoiser))
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
    copied = {copy for names in same.values() for copy in names}
    packed = {f"{name}.weight" for name in (*stored, *copied)} | {f"{name}.bias" for name in copied}
    as_kept = kept_tensor(denoiser)
    for name, tensor in model_tensors(denoiser):
        if name not in packed:
            writer.add(name, as_kept(name, tensor))
    files = writer.close()
    table = LayerTable.of(modules, stored, same)
    config = _config_of(denoiser)
    quantization = Qua2SeDiMoConfig.of(table, config_digest(type(denoiser), config), act_bits)
    write_json(folder / "config.json", {**config, "quantization_config": quantization.to_dict()})
    write_companions(denoiser, folder)
    size = _verified(_without_weights(denoiser, config), table, files, PackedSize(nbytes, weights, 0))
    return size, quantization.format_version


def _config_of(denoiser: nn.Module) -> dict[str, Any]:
    """The entries of config.json; of a module that is no diffusers model, only its class, which nothing can build."""
    if not is_known(denoiser):
        return {"module": f"{type(denoiser).__module__}.{type(denoiser).__qualname__}"}
    return config_of(denoiser)


def _without_weights(denoiser: nn.Module, config: dict[str, Any]) -> nn.Module:
    """What the loader will fill: a model built from the config alone, or a module that the user's code builds."""
    if not is_known(denoiser):
        # Copied without its tensors: deepcopy finds the stand-ins in its memo.
        tensors = [*denoiser.parameters(), *denoiser.buffers()]
        memo: dict[int, Any] = {id(tensor): _on_meta(tensor) for tensor in tensors}
        return copy.deepcopy(denoiser, memo)
    return plain_model(type(denoiser), config)


def _dtype(denoiser: nn.Module) -> torch.dtype:
    return getattr(denoiser, "dtype", None) or next(denoiser.parameters()).dtype


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _verified(model: nn.Module, table: LayerTable, files: list[Path], promised: PackedSize) -> PackedSize:
    """Check files and sizes as the loader will, against a model without weights."""
    headers = all_tensors(map(read_layout, files))
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


def kept_tensor(denoiser: Any) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """How a tensor that is not quantized is stored, by name: floats in 16 bits, but exactly if the denoiser's class
    keeps them in fp32."""
    half = torch.bfloat16 if _dtype(denoiser) == torch.bfloat16 else torch.float16
    exact = kept_exact(denoiser)

    def kept(name: str, tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.is_floating_point() and exact(name)
        return compact(tensor) if whole else _in_16_bits(name, tensor, half)

    return kept


def _in_16_bits(name: str, tensor: torch.Tensor, half: torch.dtype) -> torch.Tensor:
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
    if not isinstance(denoiser, nn.Module):
        raise Qua2SeDiMoError(f"expected a denoiser, which is a torch module, got {name}")
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


def _components(pipeline: DiffusionPipeline, component: str | Sequence[str] | None) -> tuple[str, ...]:
    if component is not None and not isinstance(component, str):
        return tuple(name for one in component for name in _components(pipeline, one))
    for name in (component,) if component else _COMPONENTS:
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return (name,)
    raise Qua2SeDiMoError(
        f"{type(pipeline).__name__} has no denoiser '{component or ' or '.join(_COMPONENTS)}'",
        f"Name one of its components: {', '.join(pipeline.components)}.",
    )


def _save_others(pipeline: DiffusionPipeline, denoisers: Mapping[str, nn.Module], folder: Path) -> None:
    """Save all other components with the pipeline's own method; stand-ins for the denoisers save nothing."""
    light = copy.copy(pipeline)
    for component, denoiser in denoisers.items():
        stand_in = copy.copy(denoiser)
        object.__setattr__(stand_in, "save_pretrained", lambda *_, **__: None)
        light.__dict__[component] = stand_in
    light.save_pretrained(folder, safe_serialization=True)
    for name, part in pipeline.components.items():
        if part is not None and name not in denoisers and not (folder / name).is_dir():
            raise Qua2SeDiMoError(f"diffusers cannot save component '{name}' of {type(pipeline).__name__}")
    forget_paths(folder)


def check_export_folder(out: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` if ``out`` cannot be written, or holds something that an export would destroy."""
    check_writable(out)
    if out.exists():
        if not out.is_dir():
            raise Qua2SeDiMoError(f"{out} is a file, not a folder", "Choose another folder.")
        check_replaceable(out)


@contextmanager
def _written_beside(out: Path, nbytes: int | None) -> Iterator[Path]:
    """A temporary folder that takes the place of ``out`` if the body succeeds and is removed if it fails.

    It gets what the user added to ``out``. Until it is whole, ``out`` is not touched.
    """
    try:
        with temporary_folder(out.parent) as temporary:
            new = temporary / out.name
            new.mkdir()
            yield new
            allow_reading(new)
            if out.exists():
                check_export_folder(out)
                carry_over(out, new)
            put_in_place(new, out, temporary)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error, nbytes) from error


def _bytes_of(pipeline: DiffusionPipeline | None, denoisers: Sequence[nn.Module], values: Values) -> int:
    """About how many bytes an export takes: the packed layers, and all other components as they are."""
    modules = [] if pipeline is None else [m for m in pipeline.components.values() if isinstance(m, nn.Module)]
    others = sum(t.nbytes for m in modules if not any(m is d for d in denoisers) for t in m.parameters())
    return others + (sum(value.nbytes for value in values.values()) if isinstance(values, Mapping) else 0)
