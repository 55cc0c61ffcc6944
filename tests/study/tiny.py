"""Studies of tiny pipelines, several components of which are quantized together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sweep.build import built
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import in_scope

from qua2sedimo import StudySettings
from qua2sedimo.runtime import QuantizedLayer


def tiny(kind: str) -> Any:
    """A pipeline of this class with random weights."""
    return built(in_scope()[kind], ENTRIES[kind])


def settings_of(kind: str, model: Path | str, component: str | list[str], **changes: Any) -> StudySettings:
    """A study of it that takes seconds."""
    asked: dict[str, Any] = {
        "model": str(model), "component": component, "inputs": ["a red fox", "a cat"], "images": 2, "observe": 2,
        "observe_inputs": ["two birds in fog", "a dog"], "arguments": dict(ENTRIES[kind].arguments), "batch": 2,
        "options": "row-2,row-4", "metrics": ["psnr"],
    }  # fmt: skip
    return StudySettings(**{**asked, **changes})


def packed(module: Any) -> int:
    """Its packed layers."""
    return sum(isinstance(m, QuantizedLayer) for m in module.modules())
