"""The stages of a study, one module each: functions of a workspace."""

from qua2sedimo.study.stages import (
    choose,
    compare,
    explain,
    export,
    fit,
    frontier,
    measure,
    observe,
    plan,
    polish,
    quantize,
    quick,
    search,
    tradeoff,
)

__all__ = [
    "choose",
    "compare",
    "explain",
    "export",
    "fit",
    "frontier",
    "measure",
    "observe",
    "plan",
    "polish",
    "quantize",
    "quick",
    "search",
    "tradeoff",
]
