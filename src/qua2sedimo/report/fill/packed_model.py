"""An exported folder: its sizes, how each layer is stored, and how its pipeline is called."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import transformers

from qua2sedimo.denoisers import weight_of
from qua2sedimo.denoisers.names import operation_type
from qua2sedimo.denoisers.stored import denoisers_in
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_object
from qua2sedimo.images.generate import input_argument
from qua2sedimo.options import Option
from qua2sedimo.runtime.backend import Qua2SeDiMoConfig
from qua2sedimo.runtime.contents import read_info
from qua2sedimo.runtime.libraries import plain_model
from qua2sedimo.runtime.own import refuse_own_code
from qua2sedimo.runtime.table import layer_modules
from qua2sedimo.system.quiet import quiet


@dataclass(frozen=True)
class PackedUnit:
    """A quantized layer, or a part of one: input channels ``span``."""

    module: str
    span: tuple[int, int] | None
    operation: str
    option: Option
    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class PackedModel:
    """``info`` is qua2sedimo.json; ``pipeline`` is None for a denoiser alone, or a class diffusers does not have;
    ``components`` are packed, and ``whole`` are further denoisers of the pipeline, which are not."""

    folder: Path
    info: dict[str, Any]
    denoiser: str
    pipeline: type | None
    act_bits: int | None
    units: list[PackedUnit]
    components: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    @property
    def extra(self) -> dict[str, Any]:
        """What the study left in the export: its model, arguments, inputs and versions; may be empty."""
        return dict(self.info.get("extra", {}))

    @property
    def makes_films(self) -> bool:
        """Whether the pipeline makes videos instead of pictures."""
        return self.pipeline is not None and "frames=" in inspect.getsource(self.pipeline.__call__)

    @property
    def task(self) -> str:
        """The hub's name of the pipeline's task, where it follows from its call; "" where it does not."""
        if self.pipeline is None or input_argument(self.pipeline) != "prompt":
            return ""
        parameters = inspect.signature(self.pipeline.__call__).parameters
        if {"image", "video", "conditioning_image"} & parameters.keys():
            return ""
        return "text-to-video" if self.makes_films else "text-to-image"


def read_packed(folder: Path) -> PackedModel:
    """Raises :class:`Qua2SeDiMoError` if the folder is no export, or a damaged one."""
    refuse_own_code(folder)
    info = read_info(folder)
    component = info.get("component")
    read = {name: _read_denoiser(folder, name) for name in info.get("components") or [component or ""]}
    units = [
        replace(unit, module=f"{name}.{unit.module}") if len(read) > 1 else unit
        for name, (_, _, own) in read.items()
        for unit in own
    ]
    index = read_object(folder / "model_index.json") if component else {}
    whole = tuple(name for name in denoisers_in(index) if name not in read)
    with quiet():  # some pipelines print when they are imported
        pipeline = getattr(diffusers, str(index.get("_class_name")), None)
    classes = " and ".join(dict.fromkeys(name for name, _, _ in read.values()))
    _, first, _ = next(iter(read.values()))
    return PackedModel(folder, info, classes, pipeline, first.act_bits, units, tuple(n for n in read if n), whole)


def _read_denoiser(folder: Path, component: str) -> tuple[str, Qua2SeDiMoConfig, list[PackedUnit]]:
    """The class, the quantization and the units of one packed denoiser."""
    config = read_object(folder / component / "config.json")
    quantization = Qua2SeDiMoConfig.from_dict(config.pop("quantization_config", {}))
    library, name = diffusers, str(config.get("_class_name"))
    if "_class_name" not in config:  # a text encoder
        library, name = transformers, str(next(iter(config.get("architectures") or ()), None))
    with quiet():
        cls = getattr(library, name, None)
    if cls is None:
        known = library.__name__
        raise Qua2SeDiMoError(f"{folder}: this version of {known} has no {name}", f"Install a newer {known}.")
    return name, quantization, _units(plain_model(cls, config), quantization)


def _units(model: Any, quantization: Qua2SeDiMoConfig) -> list[PackedUnit]:
    """In the order in which the model's modules are made."""
    modules = layer_modules(model)
    stored, _ = quantization.table().assign(modules)
    return [
        PackedUnit(name, p.span, operation_type(name, model), p.storage.option, p.shape(tuple(weight_of(module).shape)))
        for name, module in modules.items()
        for p in stored.get(name, ())
    ]


def loading_code(model: PackedModel, place: str) -> str:
    """Python that loads the model from ``place``, a folder or hub name, and makes a picture of the study's first input,
    called as it was measured."""
    if model.info.get("component") is None:
        return (
            "import qua2sedimo  # teaches diffusers to read packed layers\n"
            f"from diffusers import {model.denoiser}\n\n"
            f"denoiser = {model.denoiser}.from_pretrained({_quoted(place)})\n"
        )
    film, dtype = model.makes_films, {"bf16": "bfloat16", "fp16": "float16"}.get(str(model.info.get("dtype")))
    cast = f", torch_dtype=torch.{dtype}" if dtype else ""
    given = [_input(model), *(f"{name}={value!r}" for name, value in model.extra.get("arguments", {}).items())]
    call = "".join(f"    {one},\n" for one in [*filter(None, given), 'generator=torch.Generator("cpu").manual_seed(0)'])
    return (
        "import qua2sedimo  # teaches diffusers to read packed layers\n"
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        + ("from diffusers.utils import export_to_video\n" if film else "")
        + f"\npipeline = DiffusionPipeline.from_pretrained({_quoted(place)}{cast})\n"
        f"made = pipeline(\n{call})\n"
        + ('export_to_video(made.frames[0], "film.mp4")\n' if film else 'made.images[0].save("picture.png")\n')
    )


def _quoted(text: str) -> str:
    """A Python string in double quotes; line ends of every kind are escaped."""
    return json.dumps(text)


def _input(model: PackedModel) -> str:
    """The first input as an argument; "" if the pipeline takes none or none is known."""
    inputs = model.extra.get("inputs") or []
    if not inputs:
        return ""
    name = input_argument(model.pipeline) if model.pipeline is not None else None
    if name is None:
        name = "prompt" if isinstance(inputs[0], str) else "class_labels"
    return f"prompt={_quoted(str(inputs[0]))}" if name == "prompt" else f"{name}={[inputs[0]]!r}"
