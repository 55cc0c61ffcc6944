"""Load a pipeline, find its denoiser, and capture the arguments the pipeline calls it with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError, failures_of
from qua2sedimo.formats.files import read_json
from qua2sedimo.formats.tensorfiles import WEIGHTS, Checkpoint
from qua2sedimo.system.quiet import quiet

#: Names of denoisers among a pipeline's components, in the order of preference.
DENOISERS = ("transformer", "unet", "transformer_2", "prior", "decoder", "denoiser")


def load_pipeline(model: str, dtype: torch.dtype = torch.float32, device: str | None = None) -> Any:
    """Load a diffusers pipeline by zoo name, local folder, or hub name.

    Raises :class:`Qua2SeDiMoError` if it is none of these or cannot be loaded.
    """
    from diffusers import DiffusionPipeline

    if model in zoo.ENTRIES:
        pipeline = zoo.load(model, dtype)
    else:
        folder = Path(model).expanduser()
        if folder.exists():
            _check_pipeline_folder(folder)
        elif model.count("/") > 1 or model.startswith((".", "/", "~")):
            raise Qua2SeDiMoError(f"{model}: no such folder", "Check the path.")
        elif "/" not in model:
            raise Qua2SeDiMoError(
                f"unknown model '{model}'",
                f"Pass a zoo name ({', '.join(zoo.ENTRIES)}), a pipeline folder, or a hub name OWNER/NAME.",
            )
        try:
            with quiet():
                pipeline = DiffusionPipeline.from_pretrained(
                    str(folder) if folder.exists() else model, torch_dtype=dtype
                )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise Qua2SeDiMoError(
                f"cannot load pipeline '{model}': {_first_line(error)}",
                "Check the name and the network, or download the pipeline and pass its folder.",
            ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device or default_device())


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_pipeline_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        bare = ", it has a denoiser without its pipeline" if (folder / "config.json").is_file() else ""
        raise Qua2SeDiMoError(
            f"{folder} is not a diffusers pipeline: model_index.json is missing{bare}",
            "Pass the folder that DiffusionPipeline.save_pretrained wrote.",
        )
    try:
        json.loads(index.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Qua2SeDiMoError(f"{index} is damaged: {error}", "Save or download the pipeline again.") from error


def denoisers_of(pipeline: Any) -> list[str]:
    """Names of the pipeline's denoisers; the first is the default."""
    return [name for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)]


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

    Raises :class:`Qua2SeDiMoError` as :func:`denoiser_of`, or if a component is named twice.
    """
    names = [component] if component is None or isinstance(component, str) else list(component)
    found = dict(denoiser_of(pipeline, name) for name in names)
    if len(found) < len(names):
        raise Qua2SeDiMoError(f"a component is named twice: {', '.join(map(str, names))}", "Name each once.")
    return found


def denoiser_checkpoint(model: str, component: str | None = None) -> Checkpoint | None:
    """The safetensors checkpoint of the denoiser of a zoo model or local pipeline folder, None if there is none.

    Raises :class:`Qua2SeDiMoError` if a shard is missing or damaged.
    """
    folder = zoo.ENTRIES[model].folder if model in zoo.ENTRIES else Path(model).expanduser()
    if not (folder / "model_index.json").is_file():
        return None
    index = read_json(folder / "model_index.json")
    names = [component] if component else [name for name in DENOISERS if index.get(name, [None])[0] is not None]
    if not names or not any((folder / names[0]).glob(f"{WEIGHTS}*.safetensors*")):
        return None
    return Checkpoint(folder / names[0])


@dataclass(frozen=True)
class Call:
    """Arguments of one call to the denoiser."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


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
        with failures_of(name):
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
