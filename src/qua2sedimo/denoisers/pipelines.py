"""Load a pipeline, find its denoiser, and capture the arguments the pipeline calls it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from qua2sedimo import zoo
from qua2sedimo.denoisers.components import as_called, refuse_shared
from qua2sedimo.denoisers.layers import refuse_unsuitable, refuse_without_weights
from qua2sedimo.denoisers.loading import Loading, save_memory
from qua2sedimo.denoisers.offload import placed, refuse_hooks
from qua2sedimo.denoisers.quantized import decode_foreign, quantized_by
from qua2sedimo.denoisers.single_file import load_file
from qua2sedimo.denoisers.stored import (
    DENOISERS,
    FAILURES,
    INDEX,
    as_loaded,
    check_loaded,
    checkpoint_of,
    class_in,
    damaged_file,
    denoisers_in,
    dtype_for,
    dtype_of,
    in_order,
    is_denoiser,
    read_index,
    refuse_own_code,
    refuse_reported,
    variant_for,
    without_advice,
)
from qua2sedimo.errors import Qua2SeDiMoError, failures_of
from qua2sedimo.formats.tensorfiles import Checkpoint
from qua2sedimo.system.memory import is_out_of_memory, within_memory
from qua2sedimo.system.notes import note
from qua2sedimo.system.quiet import quiet


def load_pipeline(model: str, loading: Loading = Loading(), device: str | None = None) -> Any:
    """Load a diffusers pipeline by zoo name, local folder, single file or hub name, and place it on its device.

    ``device`` takes the place of the one in ``loading``. Raises :class:`Qua2SeDiMoError` if it is none of these, cannot
    be loaded, lacks weights, or does not fit into memory.
    """
    loading = loading if device is None else replace(loading, device=device)
    loading.check()
    path = _local(model)
    with within_memory(f"'{model}' does not fit into memory"):
        if path is not None and path.is_file():
            pipeline = load_file(path, loading)
        else:
            pipeline = _from_folder(model, path or _downloaded(model, loading), loading)
        pipeline.set_progress_bar_config(disable=True)
        with quiet():  # casts and devices that diffusers warns of are those that were asked for
            save_memory(pipeline, loading)
            return placed(pipeline, loading)


def _local(model: str) -> Path | None:
    """The folder or file that a model's name means; None for a name on the hub."""
    if model in zoo.ENTRIES:
        return zoo.ENTRIES[model].folder
    path = Path(model).expanduser()
    if path.exists():
        return path
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise Qua2SeDiMoError(f"{model}: no such folder", "Check the path.")
    if "/" not in model:
        raise Qua2SeDiMoError(
            f"unknown model '{model}'",
            f"Pass a zoo name ({', '.join(zoo.ENTRIES)}), a pipeline folder or file, or a hub name OWNER/NAME. A study "
            "of a pipeline that was passed in Python is opened there: Study(FOLDER, pipeline).",
        )
    return None


def _downloaded(model: str, loading: Loading) -> Path:
    """The folder of a hub name's files in the hub's cache; what is missing is downloaded."""
    from diffusers import DiffusionPipeline

    try:
        with quiet():
            return Path(DiffusionPipeline.download(model, revision=loading.revision, variant=loading.variant))
    except FAILURES as error:
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            refuse_own_code(model, "Python files on the hub")
        raise Qua2SeDiMoError(
            f"cannot load pipeline '{model}': {without_advice(error)}",
            "Check name, revision, variant and the network, or download the pipeline and pass its folder.",
        ) from error


def _from_folder(model: str, folder: Path, loading: Loading) -> Any:
    """The pipeline in a folder, on the CPU, with all weights."""
    from diffusers import DiffusionPipeline

    index = read_index(folder)
    variant, remark = variant_for(folder, index, loading.variant)
    if remark:
        note(remark)
    try:  # the headers of its files are read, which may be damaged
        dtype = loaded_dtype(str(folder), loading)
    except Qua2SeDiMoError as error:
        raise Qua2SeDiMoError(f"cannot load pipeline '{model}': {error.message}", error.remedy) from error
    assert dtype is not None
    try:
        with quiet() as said:
            pipeline = DiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, variant=variant)
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        damaged = damaged_file(folder)
        if damaged is not None:
            raise Qua2SeDiMoError(f"cannot load pipeline '{model}': {damaged.message}", damaged.remedy) from error
        raise Qua2SeDiMoError(
            f"cannot load pipeline '{model}': {without_advice(error)}",
            "Check that the folder is complete, and that its config.json files belong to its weights.",
        ) from error
    refuse_reported(str(folder), said)
    for remark in (*check_loaded(pipeline, folder, variant, dtype), *decode_foreign(pipeline, folder)):
        note(remark)
    return pipeline


def denoisers_of(pipeline: Any) -> list[str]:
    """Names of the pipeline's denoisers; the first is the default."""
    usual = [name for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)]
    others = getattr(pipeline, "components", {}).items()
    return in_order(usual, (name for name, module in others if is_denoiser(type(module))))


def denoiser_of(pipeline: Any, component: str | None = None) -> tuple[str, nn.Module]:
    """(component name, module) of the denoiser; ``component`` selects one of several.

    Raises :class:`Qua2SeDiMoError` that lists the pipeline's modules if there is no such denoiser.
    """
    names = [component] if component else denoisers_of(pipeline)
    module = getattr(pipeline, names[0], None) if names else None
    if not isinstance(module, nn.Module):
        have = [n for n, value in pipeline.components.items() if isinstance(value, nn.Module)]
        raise Qua2SeDiMoError(
            f"{type(pipeline).__name__} has no denoiser '{component or ' / '.join(DENOISERS)}'; its modules: {have}",
            "Select the one to quantize with --component.",
        )
    return names[0], module


def denoisers_named(pipeline: Any, component: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """The denoisers of a study by component: the default one, one that is named, or several.

    Raises :class:`Qua2SeDiMoError` as :func:`denoiser_of`, or if a component is named twice or shares weights.
    """
    names = [component] if component is None or isinstance(component, str) else list(component)
    found = dict(denoiser_of(pipeline, name) for name in names)
    if len(found) < len(names):
        raise Qua2SeDiMoError(f"a component is named twice: {', '.join(map(str, names))}", "Name each once.")
    if hasattr(pipeline, "components"):
        refuse_shared(pipeline, found)
    return found


def denoiser_checkpoint(model: str, component: str | None = None, loading: Loading = Loading()) -> Checkpoint | None:
    """The safetensors files of the denoiser of a zoo model or local pipeline folder, which give every tensor as
    :func:`load_pipeline` loads it; None if there are no such files, or they hold something else.

    Raises :class:`Qua2SeDiMoError` if a shard is missing or damaged.
    """
    folder, dtype = _folder(model), loaded_dtype(model, loading)
    if folder is None or dtype is None:
        return None
    index = read_index(folder)
    names = [component] if component else denoisers_in(index)
    if not names or quantized_by(folder / names[0]) is not None:
        return None
    variant, _ = variant_for(folder, index, loading.variant)
    return checkpoint_of(folder / names[0], variant, as_loaded(class_in(folder / names[0] / "config.json"), dtype))


def loaded_dtype(model: str, loading: Loading) -> torch.dtype | None:
    """The dtype that :func:`load_pipeline` loads a zoo model or local pipeline folder in; None for other models.

    The zoo's files are in fp16 only to be small: its models were trained and are judged in fp32.
    """
    folder = _folder(model)
    if folder is None:
        return None
    if loading.dtype == "auto" and folder in (entry.folder for entry in zoo.ENTRIES.values()):
        return torch.float32
    index = read_index(folder)
    return dtype_for(folder, index, loading, variant_for(folder, index, loading.variant)[0])


def _folder(model: str) -> Path | None:
    """The folder of a zoo model or local pipeline; None for other models."""
    folder = zoo.ENTRIES[model].folder if model in zoo.ENTRIES else Path(model).expanduser()
    return folder if (folder / INDEX).is_file() else None


def refuse_given(pipeline: Any, component: str | Sequence[str] | None) -> None:
    """Raise :class:`Qua2SeDiMoError` if a denoiser of a pipeline in memory cannot be quantized as it is: it is
    quantized, cast layer by layer, offloaded, has adapters, or has no weights."""
    for denoiser in denoisers_named(pipeline, component).values():
        refuse_hooks(denoiser)
        refuse_unsuitable(denoiser)
        refuse_without_weights(denoiser)


def check_given(pipeline: Any, component: str | Sequence[str] | None, loading: Loading) -> None:
    """:func:`refuse_given`, and raise :class:`Qua2SeDiMoError` if ``loading`` asks for another dtype or place than a
    pipeline in memory has: it is used as it is."""
    refuse_given(pipeline, component)
    remedy = "Leave the setting out, or change the pipeline before it is passed: it is used as it is."
    if loading.offload != "none":
        raise Qua2SeDiMoError("offload: a pipeline that is passed in memory is not offloaded", remedy)
    for denoiser in denoisers_named(pipeline, component).values():
        dtype = dtype_of(denoiser)
        if loading.dtype not in ("auto", dtype):
            raise Qua2SeDiMoError(f"dtype: the pipeline that was passed is in {dtype}, not {loading.dtype}", remedy)
        device = next(denoiser.parameters()).device
        if loading.device is not None and torch.device(loading.device).type != device.type:
            raise Qua2SeDiMoError(f"device: the pipeline that was passed is on {device}, not {loading.device}", remedy)
    save_memory(pipeline, loading)


@dataclass(frozen=True)
class Call:
    """Arguments of one call to the denoiser."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on_cpu(self) -> Call:
        """The same call with all tensors in the CPU's memory."""
        args, kwargs = tree_map(lambda x: x.cpu() if torch.is_tensor(x) else x, (self.args, self.kwargs))
        return Call(args, kwargs)


class _Captured(BaseException):
    """Stops the pipeline once every denoiser was called."""


def capture_call(
    pipeline: Any,
    denoiser: nn.Module,
    arguments: Mapping[str, Any] | None = None,
    run: Callable[[], object] | None = None,
) -> Call:
    """The pipeline's first call to its denoiser when run with ``arguments``, or by ``run``.

    Raises :class:`Qua2SeDiMoError` if the pipeline fails before that, or never calls the denoiser.
    """
    name = type(pipeline).__name__
    captured: list[Call] = []

    def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(Call(args, dict(kwargs)))
        raise _Captured

    hook = denoiser.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        with failures_of(name), as_called(denoiser):
            if run is not None:
                run()
            else:
                pipeline(**arguments or {})
    except _Captured:
        return captured[0]
    finally:
        hook.remove()
    raise Qua2SeDiMoError(
        f"{name} never called {type(denoiser).__name__}: it is not reached with these arguments",
        "Give more steps, or the arguments that use it: --arguments, or 'arguments:' in study.yaml; or select another "
        "denoiser with --component.",
    )
