"""study.yaml: what was asked, strict and versioned."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.files import write_text
from qua2sedimo.objective import Objective


class StudySettings(BaseModel):
    """Everything that decides a study's results. Unknown keys are errors.

    ``model``: zoo name, pipeline folder or hub name; ``inputs``: prompts or class labels; ``arguments``: passed to
    the pipeline (steps, guidance, size); ``images``: images a measured configuration; ``options``: ``wide``,
    ``paper`` or a comma-separated list; ``objective``: what is
    learned and maximised, a metric or an expression (:mod:`qua2sedimo.objective`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    model: str
    component: str | None = None
    inputs: list[str | int] = Field(default_factory=list)
    arguments: dict[str, Any] = Field(default_factory=dict)
    images: int = Field(default=16, ge=2)
    batch: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0)
    options: str = "wide"
    keep: list[str] = Field(default_factory=list)
    sampler: Literal["spread", "paper"] = "spread"
    bits_range: tuple[float, float] = (2.0, 6.0)
    objective: str = "psnr"
    metrics: list[str] = Field(default_factory=lambda: ["psnr", "features"])
    loss: Literal["srcc", "lambdarank", "hybrid", "mse"] = "srcc"

    @field_validator("objective")
    @classmethod
    def _readable(cls, text: str) -> str:
        Objective.parse(text)
        return text

    @property
    def protocol(self) -> str:
        """Names what makes measurements comparable: two studies with the same protocol measure alike."""
        fields = set(type(self).model_fields) - {"version", "options", "batch", "loss"}
        content = json.dumps(self.model_dump(include=fields), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        content = self.model_dump(mode="json")
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if yaml.safe_load(text) != content:  # some control characters survive only as escapes
            text = yaml.safe_dump(content, sort_keys=False)
        write_text(path, text)

    @classmethod
    def load(cls, path: Path) -> StudySettings:
        """Read study.yaml; a missing, damaged or unknown entry is an error that names it."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.model_validate(content)
        except FileNotFoundError:
            raise Qua2SeDiMoError(
                f"{path.parent} is no study folder: {path.name} is missing",
                "Make one with `qua2sedimo init MODEL STUDY`, or run everything with `qua2sedimo run MODEL STUDY`.",
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise Qua2SeDiMoError(f"{path} is not valid YAML: {error}", "Repair it or make a new study.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise Qua2SeDiMoError(f"{path}: {where}: {first['msg']}", "Correct this entry.") from error
