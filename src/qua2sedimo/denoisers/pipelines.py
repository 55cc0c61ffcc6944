"""Load a pipeline, find its denoiser, and capture the arguments the pipeline calls it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_object
from qua2sedimo.formats.tensorfiles import WEIGHTS, Checkpoint
from qua2sedimo.system.quiet import quiet

#: Names of denoisers among a pipeline's components, in the order of preference.
DENOISERS = ("transformer", "unet", "transformer_2", "prior", "decoder")


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
    # diffusers takes a configuration that is a text for a name on the hub.
    for config in (index, *sorted(folder.glob("*/*config.json"))):
        read_object(config, "Save or download the pipeline again.")


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


def denoiser_checkpoint(model: str, component: str | None = None) -> Checkpoint | None:
    """The safetensors checkpoint of the denoiser of a zoo model or local pipeline folder, None if there is none.

    Raises :class:`Qua2SeDiMoError` if a shard is missing or damaged.
    """
    folder = zoo.ENTRIES[model].folder if model in zoo.ENTRIES else Path(model).expanduser()
    if not (folder / "model_index.json").is_file():
        return None
    index = read_object(folder / "model_index.json")
    named = {name for name, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None])}
    names = [component] if component else [name for name in DENOISERS if name in named]
    if not names or not any((folder / names[0]).glob(f"{WEIGHTS}*.safetensors*")):
        return None
    return Checkpoint(folder / names[0])


@dataclass(frozen=True)
class Call:
    """Arguments of one call to the denoiser."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Captured(Exception):
    """Stops the pipeline at the first call to the denoiser."""


def capture_call(pipeline: Any, denoiser: nn.Module, arguments: Mapping[str, Any]) -> Call:
    """The pipeline's first call to its denoiser when run with ``arguments``.

    Raises :class:`Qua2SeDiMoError` if the pipeline fails before that, or never calls the denoiser.
    """
    captured: list[Call] = []

    def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(Call(args, dict(kwargs)))
        raise _Captured

    hook = denoiser.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        pipeline(**arguments)
    except _Captured:
        return captured[0]
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise Qua2SeDiMoError(
            f"{type(pipeline).__name__} failed when called: {_first_line(error)}",
            "Check the pipeline's arguments: --arguments, or 'arguments:' in study.yaml.",
        ) from error
    finally:
        hook.remove()
    raise Qua2SeDiMoError(
        f"{type(pipeline).__name__} never called {type(denoiser).__name__}",
        "Select another denoiser with --component.",
    )
