"""What a pipeline folder's files hold: variants, dtypes, and the weights as `from_pretrained` loads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from qua2sedimo.denoisers.loading import DTYPES, DtypeName, Loading, dtype_name
from qua2sedimo.denoisers.quantized import PACKED, prepare_quantized, quantized_by
from qua2sedimo.errors import Qua2SeDiMoError, first_line
from qua2sedimo.formats.files import read_json, read_object
from qua2sedimo.formats.float8 import FLOAT8
from qua2sedimo.formats.tensorfiles import (
    DAMAGED_FILE,
    FLOATS,
    WEIGHTS,
    Checkpoint,
    as_stored,
    read_layout,
    shard_files,
    weight_names,
)

_SAVE_AGAIN = "Save or download the pipeline again."
#: Usual names of denoisers among a pipeline's components, in the order of preference.
DENOISERS = ("transformer", "unet", "transformer_2", "prior", "decoder", "denoiser")
_FAMILIES = ("diffusers.models.transformers.", "diffusers.models.unets.")
_NEVER_CALLED = ("MotionAdapter",)  # holds weights that AnimateDiff's pipelines copy to their denoiser
INDEX = "model_index.json"
_WEIGHTS = re.compile(
    rf"({WEIGHTS}|model|pytorch_model)(-\d+-of-\d+)?(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+)?\.(safetensors|bin)"
)
_SHOWN = 5  # names in a message
_REPORTED = re.compile(r"^(\S+)\s*\|\s*(?:MISSING|MISMATCH)", re.MULTILINE)  # in what transformers reports of a model
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
#: What diffusers and transformers raise for a model that cannot be loaded.
FAILURES = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError
)  # fmt: skip


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's model_index.json; raises :class:`Qua2SeDiMoError` if the folder is no pipeline, is one that
    brings its own code, or is quantized already by another program."""
    path = folder / INDEX
    if not path.is_file():
        bare = ", it has a denoiser without its pipeline" if (folder / "config.json").is_file() else ""
        raise Qua2SeDiMoError(
            f"{folder} is not a diffusers pipeline: model_index.json is missing{bare}",
            "Pass the folder that DiffusionPipeline.save_pretrained wrote.",
        )
    # diffusers takes a configuration that is a text for a name on the hub.
    for config in sorted(folder.glob("*/*config.json")):
        read_object(config, _SAVE_AGAIN)
    index = read_object(path, _SAVE_AGAIN)
    if not index.get("_class_name"):
        raise Qua2SeDiMoError(f"{path} names no pipeline class", _SAVE_AGAIN)
    _refuse_own_code(folder, index)
    for name in components(index):
        prepare_quantized(folder / name)
    return index


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Component → (library, class) of those that the pipeline has."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}
    return {name: (v[0], v[1]) for name, v in pairs.items() if len(v) == 2 and isinstance(v[0], str)}


def _refuse_own_code(folder: Path, index: Mapping[str, Any]) -> None:
    stated = index["_class_name"]
    code = [f"{stated[0]}.py"] if isinstance(stated, list) and stated else []
    code += [f"{name}/{library}.py" for name, (library, _) in components(index).items()]
    found = [file for file in code if (folder / file).is_file()]
    if found or isinstance(stated, list):
        refuse_own_code(str(folder), (found or code or ["?"])[0])


def refuse_own_code(model: str, file: str) -> None:
    """Raise the :class:`Qua2SeDiMoError` for a pipeline that comes with Python code, which would have to be run."""
    raise Qua2SeDiMoError(
        f"{model} has pipeline code of its own ({file}), which is not run",
        "If you trust it, load it in Python, pipe = DiffusionPipeline.from_pretrained(…, trust_remote_code=True), and "
        "pass it: qua2sedimo.quantize(pipe, …).",
    )


def variant_for(folder: Path, index: Mapping[str, Any], asked: str | None) -> tuple[str | None, str]:
    """(variant to load the folder with, a remark if nobody asked for it).

    It is the one asked for, or none if every component has files without variant, or the only variant that all others
    have. Raises :class:`Qua2SeDiMoError` if there is no such variant, or several.
    """
    kinds = {name: variants_in(folder / name) for name in components(index) if (folder / name).is_dir()}
    kinds = {name: kinds for name, kinds in kinds.items() if kinds}
    known = sorted({v for variants in kinds.values() for v in variants if v is not None})
    if asked is not None:
        if asked not in known:
            there = f"It has {', '.join(known)}." if known else "It has none: leave out 'variant'."
            raise Qua2SeDiMoError(f"{folder} has no files of variant '{asked}'", there)
        return asked, ""
    lacking = {name: variants for name, variants in kinds.items() if None not in variants}
    if not lacking:
        return None, ""
    common = set.intersection(*map(set, lacking.values()))
    if len(common) != 1:
        raise Qua2SeDiMoError(
            f"{folder}: the weights of {', '.join(lacking)} have only variants: {', '.join(known)}",
            "Choose one that all of them have, with 'variant:' in study.yaml or --variant.",
        )
    (variant,) = common
    assert variant is not None
    return variant, f"{folder} has the weights of {', '.join(lacking)} only as variant '{variant}': that is loaded."


def variants_in(folder: Path) -> set[str | None]:
    """The variants of the weight files in a component's folder, None for files without one."""
    found = (_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())
    return {match["variant"] for match in found if match is not None}


def checkpoint_of(
    folder: Path, variant: str | None, cast: Callable[[str, torch.Tensor], torch.Tensor] = as_stored
) -> Checkpoint | None:
    """The safetensors files of a model that `from_pretrained` reads with this variant; None if it reads others.

    A variant is that of a pipeline: a component that lacks it is loaded without.
    """
    if variant not in (variants_in(folder) if folder.is_dir() else ()):
        variant = None
    there = any((folder / name).is_file() for name in weight_names(variant))
    return Checkpoint(folder, variant, cast) if there else None


def stored_dtype(tensors: Mapping[str, Any]) -> torch.dtype:
    """The dtype that a checkpoint is computed in: the one that most of its bytes have.

    Weights in 8-bit floats are computed in bf16, which holds them exactly; fp64 as fp32. ``tensors`` are a header's.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    most = max(sizes, key=lambda name: sizes[name], default="F32")
    known = {"F16": torch.float16, "BF16": torch.bfloat16, **dict.fromkeys(FLOAT8, torch.bfloat16)}
    return known.get(most, torch.float32)


def dtype_for(folder: Path, index: Mapping[str, Any], loading: Loading, variant: str | None) -> torch.dtype:
    """The dtype to load a pipeline folder in; ``auto`` is that of its denoiser's safetensors files, fp32 without any.

    An export is loaded in the dtype that its study measured in.
    """
    if loading.dtype != "auto":
        return DTYPES[loading.dtype]
    info = folder / f"{PACKED}.json"
    if info.is_file():
        return DTYPES.get(read_json(info).get("dtype"), torch.float32)
    for name in denoisers_in(index) or components(index):
        if quantized_by(folder / name) is not None:
            return _dtype_beside_codes(folder / name, variant)
        checkpoint = checkpoint_of(folder / name, variant)
        if checkpoint is not None:
            return stored_dtype(checkpoint.tensors)
    return torch.float32


def _dtype_beside_codes(component: Path, variant: str | None) -> torch.dtype:
    """:func:`stored_dtype` of what is not quantized in a quantized model: scales may be in another."""
    tensors = {n: t for file in shard_files(component, variant) for n, t in read_layout(file).tensors.items()}
    return stored_dtype({n: t for n, t in tensors.items() if f"{n.rpartition('.')[0]}.scale" not in tensors})


def denoisers_in(index: Mapping[str, Any]) -> list[str]:
    """Names of the denoisers that a model_index.json lists: the usual names first, then others by their class."""
    import diffusers

    there = components(index)
    own = {name: getattr(diffusers, str(cls), None) for name, (library, cls) in there.items() if library == "diffusers"}
    return in_order(there, (name for name, cls in own.items() if is_denoiser(cls)))


def in_order(names: Collection[str], denoisers: Iterable[str]) -> list[str]:
    """Denoisers among a pipeline's components, the default first: those of usual names, then ``denoisers``."""
    return list(dict.fromkeys([*(name for name in DENOISERS if name in names), *denoisers]))


def is_denoiser(cls: Any) -> bool:
    """Whether a class is one of diffusers' transformers and U-Nets."""
    return getattr(cls, "__module__", "").startswith(_FAMILIES) and cls.__name__ not in _NEVER_CALLED


def kept_in_fp32(cls: Any) -> tuple[str, ...]:
    """Components of tensor names that a model class keeps in fp32, whatever dtype it is loaded in."""
    kept = getattr(cls, "_keep_in_fp32_modules", None) or ()
    return (kept,) if isinstance(kept, str) else tuple(kept)


def as_loaded(cls: Any, dtype: torch.dtype) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """The cast that `from_pretrained` of a model class makes: to ``dtype``, but to fp32 what the class keeps in it."""
    kept = kept_in_fp32(cls)

    def cast(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float32 if any(part in kept for part in name.split(".")) else dtype)

    return cast


def class_in(config: Path) -> Any:
    """The diffusers class that a component's config.json names; None if diffusers has none of this name."""
    import diffusers

    content = read_json(config, DAMAGED_FILE) if config.is_file() else {}
    return getattr(diffusers, str(content.get("_class_name")), None)


def check_loaded(pipeline: Any, folder: Path, variant: str | None, dtype: torch.dtype) -> Iterable[str]:
    """Complete what diffusers loaded from a folder, and yield remarks about weights that it did not use.

    Weights with scales are multiplied by them. Raises :class:`Qua2SeDiMoError` that names missing and unused weights if
    any is missing: diffusers leaves those without values.
    """
    from diffusers import ModelMixin

    for name, model in pipeline.components.items():
        if not isinstance(model, nn.Module):
            continue
        checkpoint = None
        if isinstance(model, ModelMixin) and getattr(model, "hf_quantizer", None) is None:
            checkpoint = checkpoint_of(folder / name, variant)
        stored = None if checkpoint is None else _names_as_loaded(model, checkpoint)
        unused = refuse_incomplete(model, f"{folder / name}", stored)
        if unused:
            yield f"{folder / name} has weights that {type(model).__name__} does not use: {some(unused)}"
        if checkpoint is not None:
            _apply_scales(model, checkpoint, dtype)


def refuse_incomplete(model: nn.Module, where: str, stored: Iterable[str] | None) -> list[str]:
    """Names in ``stored`` that the model does not use; ``stored`` are the names in its files, None if unknown.

    Raises :class:`Qua2SeDiMoError` that names them all if weights of the model are missing.
    """
    own = model.state_dict()
    there = set(own if stored is None else stored)
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    unused = sorted(name for name in there - own.keys() if not any(re.search(p, name) for p in ignored))
    missing = [name for name, tensor in own.items() if tensor.is_meta]
    if missing:
        adapter = [name for name in unused if ".base_layer." in name or ".lora_" in name]
        cause = ": it was saved while an adapter (LoRA) was attached" if adapter else ""
        more = f"; it has others that are not of this model: {some(unused)}" if unused else ""
        raise Qua2SeDiMoError(
            f"{where} lacks weights of {type(model).__name__}{cause}: {some(missing)}{more}",
            "Fuse or unload the adapter (pipeline.fuse_lora(), pipeline.unload_lora_weights()) and save it again."
            if adapter
            else "Check that config.json and weights belong together, and that the download is complete.",
        )
    return unused


def refuse_reported(where: str, messages: Iterable[str]) -> None:
    """Raise :class:`Qua2SeDiMoError` if a text encoder, by what transformers reports, lacks weights: it draws those at
    random."""
    missing = [name for message in messages for name in _REPORTED.findall(_COLOURS.sub("", message))]
    if missing:
        raise Qua2SeDiMoError(
            f"{where}: a text encoder lacks weights: {some(missing)}",
            "Check that config.json and weights belong together, and that the download is complete.",
        )


def damaged_file(folder: Path) -> Qua2SeDiMoError | None:
    """The error of the first file of a pipeline folder that is no JSON, or has no header of weights; None if all are
    sound. Libraries that fail to load one seldom say which it was."""
    return next(filter(None, map(_damage_of, sorted(folder.rglob("*")))), None)


def _damage_of(path: Path) -> Qua2SeDiMoError | None:
    try:
        if path.suffix == ".json":
            read_json(path, DAMAGED_FILE)
        elif path.suffix == ".safetensors":
            read_layout(path)
    except Qua2SeDiMoError as error:
        return error
    return None


def without_advice(error: BaseException) -> str:
    """The first line of an exception's message, without advice on diffusers' own arguments."""
    return first_line(error).partition(" If you want to instead")[0]


def some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more


def _names_as_loaded(model: Any, checkpoint: Checkpoint) -> set[str]:
    """Names of the stored tensors after diffusers has renamed those of old versions."""
    names: dict[str, Any] = dict.fromkeys(checkpoint.tensors, torch.empty(0))
    model._fix_state_dict_keys_on_load(names)
    return set(names)


def _apply_scales(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Multiply weights by their scales, of which diffusers knows nothing."""
    own, cast = model.state_dict(), as_loaded(type(model), dtype)
    with torch.no_grad():
        for name in checkpoint.scaling.scales:
            own[name].copy_(cast(name, checkpoint(name)))


def dtype_of(denoiser: nn.Module) -> DtypeName:
    """The name of the dtype that most of a live denoiser's weights have."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in denoiser.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return dtype_name(max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32))
