"""study.yaml: the settings of a study, strict and versioned."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from qua2sedimo.denoisers.loading import DtypeName, Loading, OffloadName
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import write_text
from qua2sedimo.formats.yamls import read_yaml
from qua2sedimo.images.ledger import LEARNING, OBSERVED

_BATCH_OF_VERSION_1 = 16
_PLACING = (
    "device",
    "offload",
    "vae_slicing",
    "packed",
)  # where and how a model runs, which may change from call to call
_OPTIONAL = ("configurations", "variant", "revision", "config", "vae_tiling")
#: The largest seed of the random generators that are used.
MOST_SEED = 2**63 - 1

SamplerName = Literal["spread", "stratified", "near", "paper", "singles", "list"]
RoundingName = Literal["nearest", "compensated"]
Effort = Literal["quick", "search", "paper"]
#: Random configurations that are measured where none were asked for and the effort needs them.
USUAL_CONFIGURATIONS = 100
Target = Literal["sdnq", "gguf"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)


class StudySettings(BaseModel):
    """All settings that a study's results depend on. Unknown keys are errors.

    ``model``: zoo name, pipeline folder or hub name; ``component``: the denoiser if the pipeline has several, or a list
    of those that share the budget; ``inputs``: prompts or class labels; ``arguments``: passed to
    the pipeline (steps, guidance, size); ``images``: images per measured configuration; ``batch``: images per pipeline
    call, ``auto`` for as many as fit, at most 16; ``options``: ``default``, ``wide``, ``paper`` or a list;
    ``sampler``: which configurations are measured, within ``bits_range`` average bits, or from the file
    ``configurations`` (relative to the study folder); ``objective``: what is predicted and maximised, a metric or an
    expression (:mod:`qua2sedimo.objective`). ``rounding``: ``nearest``, or ``compensated`` by statistics; by
    default nearest for the option set ``paper``, which reproduces the paper, compensated for others.
    ``observe``: images that these statistics are taken from, ``auto`` for 128 of a small denoiser, 24 of a large one;
    ``observe_inputs``: what they show in turn with the study's inputs, ``auto`` for varied prompts or classes;
    ``observe_steps``: in how many steps they are generated at most, ``auto`` for as many as other images of a small
    denoiser, 6 of a large one;
    ``memory``: gigabytes for them while they are taken. ``target``: another program that must load the result; layers
    are then not split or tied, and only what its format holds is tried.

    ``dtype``, ``device``, ``variant``, ``revision``, ``config``, ``offload``, ``vae_slicing`` and ``vae_tiling``: how
    the model is loaded (:class:`~qua2sedimo.denoisers.loading.Loading`). ``packed``: configurations are measured from
    packed weights, in less memory and more time, for the same images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[3] = 3
    model: str
    component: str | Annotated[list[str], Field(min_length=2)] | None = None
    dtype: DtypeName = "auto"
    device: str | None = None
    variant: str | None = None
    revision: str | None = None
    config: str | None = None
    offload: OffloadName = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    packed: bool = False
    inputs: list[str | int] = Field(default_factory=list)
    arguments: dict[str, Any] = Field(default_factory=dict)
    images: int = Field(default=16, ge=2, le=LEARNING.size)
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    options: str = "default"
    rounding: RoundingName | None = None
    observe: Annotated[int, Field(ge=1, le=OBSERVED.size)] | Literal["auto"] = "auto"
    observe_inputs: list[str | int] | Literal["auto"] = "auto"
    observe_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    memory: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    target: Target | None = None
    keep: list[str] = Field(default_factory=list)
    sampler: SamplerName = "spread"
    configurations: str | None = None
    bits_range: tuple[float, float] = (2.0, 6.0)
    objective: str = "psnr"
    metrics: list[str] = Field(default_factory=lambda: ["psnr"])
    loss: Literal["srcc", "lambdarank", "hybrid", "mse"] = "srcc"

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, content: Any) -> Any:
        """Version 1 had no ``configurations`` and no ``batch: auto``; up to version 2 rounding was nearest, the default
        set of options ``wide``, every model loaded in fp32, and features were measured too."""
        if isinstance(content, dict) and content.get("version") == 1:
            content = {"batch": _BATCH_OF_VERSION_1, **content, "version": 2}
        if isinstance(content, dict) and content.get("version") == 2:
            before = {"options": "wide", "rounding": "nearest", "dtype": "fp32", "metrics": ["psnr", "features"]}
            return {**before, **content, "version": 3}
        return content

    @field_validator("sampler", "loss", mode="before")
    @classmethod
    def _is_known(cls, value: Any, info: ValidationInfo) -> Any:
        return known_name(value, get_args(cls.model_fields[str(info.field_name)].annotation), str(info.field_name))

    @field_validator("metrics")
    @classmethod
    def _are_metrics(cls, value: list[str]) -> list[str]:
        from qua2sedimo.metrics.catalogue import check_metrics  # heavy to import; few commands need it

        check_metrics(value)
        return value

    @field_validator("objective")
    @classmethod
    def _is_readable(cls, text: str) -> str:
        from qua2sedimo.objective import Objective  # see above

        Objective.parse(text)
        return text

    @field_validator("bits_range")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not (0 < value[0] <= value[1] and math.isfinite(value[1])):
            raise ValueError(f"expected 0 < lowest <= highest average bits, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _has_its_list(self) -> StudySettings:
        if (self.sampler == "list") != (self.configurations is not None):
            raise ValueError("'sampler: list' and 'configurations: FILE' belong together")
        return self

    @property
    def several(self) -> tuple[str, ...]:
        """The components, if several denoisers share the study; their layers are named COMPONENT.LAYER."""
        return tuple(self.component) if isinstance(self.component, list) else ()

    @property
    def compensates(self) -> bool:
        """Whether rounding is compensated, so that the layers' inputs must be observed."""
        if self.rounding is None:
            return self.options != "paper"
        return self.rounding == "compensated"

    @property
    def protocol(self) -> str:
        """A hash of what measurements depend on, apart from weights and dtype: those of studies with equal protocols
        are comparable."""
        names = set(type(self).model_fields) - {
            "version", "options", "rounding", "observe", "observe_inputs", "observe_steps", "memory", "target", "batch",
            "loss",
        }  # fmt: skip
        # The dtype that `auto` means depends on the checkpoint: it is in the study's identity, beside the weights.
        # Where the model computes, where its weights wait, and how many images are decoded at once change results only
        # by rounding. Tiles change pictures.
        names -= {"dtype", *_PLACING}
        # What earlier versions did not have, their hashes do not have.
        names -= {name for name in _OPTIONAL if getattr(self, name) == type(self).model_fields[name].default}
        content = json.dumps(self.model_dump(include=names), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def loading(self) -> Loading:
        """How the model is loaded."""
        return Loading(**{field.name: getattr(self, field.name) for field in fields(Loading)})

    @model_validator(mode="after")
    def _can_be_packed(self) -> StudySettings:
        if self.packed and self.offload not in ("none", "model"):
            raise ValueError(f"packed: weights that are offloaded layer by layer (offload: {self.offload}) stay plain")
        return self

    def asks_the_same_as(self, other: StudySettings) -> bool:
        """Whether both are equal but for what changes results only by rounding: batch, memory, device, offloading."""
        free = {name: getattr(other, name) for name in ("batch", "memory", *_PLACING)}
        return self.model_copy(update=free) == other

    def placed_as(self, other: StudySettings) -> StudySettings:
        """These settings with the device, offloading and slicing that ``other`` asks for, if it asks for any."""
        asked = {name: getattr(other, name) for name in _PLACING}
        defaults = {name: type(self).model_fields[name].default for name in _PLACING}
        return self.model_copy(update={name: value for name, value in asked.items() if value != defaults[name]})

    def save(self, path: Path) -> None:
        """Write study.yaml atomically."""
        content = self.model_dump(mode="json")
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if yaml.safe_load(text) != content:  # some control characters survive only as escapes
            text = yaml.safe_dump(content, sort_keys=False)
        write_text(path, text)

    @classmethod
    def load(cls, path: Path) -> StudySettings:
        """Read study.yaml; raises :class:`Qua2SeDiMoError` naming a missing, invalid or unknown entry."""
        try:
            if not path.exists():
                raise Qua2SeDiMoError(
                    f"{path.parent} is no study folder: {path.name} is missing",
                    "Make one with `qua2sedimo init MODEL STUDY`, or run everything with `qua2sedimo run MODEL STUDY`.",
                )
            content = read_yaml(path, "Correct it, or create a new study.")
        except OSError as error:  # a name that is too long
            raise Qua2SeDiMoError(f"cannot read {path}: {error.strerror or error}", "Name a study folder.") from error
        try:
            return cls.model_validate(content)
        except RecursionError:
            raise Qua2SeDiMoError(f"{path}: an entry is nested too deep", "Correct this entry.") from None
        except Qua2SeDiMoError as error:
            raise Qua2SeDiMoError(f"{path}: {error.message}", error.remedy or "Correct this entry.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                message = _unknown(where, tuple(cls.model_fields), "entry")
            raise Qua2SeDiMoError(f"{path}: {where}: {message}", "Correct this entry.") from error


def known_name(value: Any, known: tuple[str, ...], what: str) -> Any:
    """The value itself; raises ValueError with the nearest known name if it is unknown."""
    if value not in known:
        raise ValueError(_unknown(str(value), known, what))
    return value


def _unknown(name: str, known: tuple[str, ...], what: str) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
    return f"unknown {what} '{name}'; {hint}"


def usual_effort(settings: StudySettings, configurations: int | None) -> Effort:
    """The effort where none was asked for: as little as chooses well.

    Gradients choose as well as searches do (docs/compensation.md); nearest rounding has none. Who asks for random
    ``configurations`` wants them measured.
    """
    return "quick" if configurations is None and settings.compensates else "search"
