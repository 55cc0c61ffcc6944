"""One pipeline class through a study: init, plan, two measurements, export, and the export loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.sweep.build import built
from tests.sweep.entries import ENTRIES
from tests.sweep.registry import in_scope

from qua2sedimo.denoisers import load_pipeline
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import Generator
from qua2sedimo.options import Option
from qua2sedimo.study import Study
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.study.stages.export import save_configuration

#: Largest difference of pictures that is rounding: the live and the loaded layer add up in another order.
ROUNDING = 1e-4

#: A folder's name that shells, patterns and markup would change.
ODD = 'it\'s [a] "walk" of 50% {x}'
_OTHERS = ["two cats", "a lake in winter"]  # observed besides, in place of many varied prompts
STAGES = ("init", "plan", "measure", "export", "load")


@dataclass
class Walk:
    """How far a class came: the stages that were passed, and what went wrong in the next one (empty: nothing)."""

    passed: list[str]
    wrong: str = ""
    remark: str = ""


def walk(name: str, folder: Path) -> Walk:
    """Take the tiny instance of a class through every stage; ``folder`` is empty before."""
    found = Walk([])
    folder = folder / ODD
    try:
        _stages(name, folder, found)
    except Qua2SeDiMoError as error:
        found.wrong = error.message
    return found


def _stages(name: str, folder: Path, found: Walk) -> None:
    entry, model = ENTRIES[name], folder / "model"
    built(in_scope()[name], entry).save_pretrained(model)
    settings = StudySettings(
        model=str(model), inputs=list(entry.inputs), arguments=dict(entry.arguments), images=2, observe=2,
        options="uaq-4,uaq-3", metrics=["psnr"],
        observe_inputs=_OTHERS if entry.inputs and isinstance(entry.inputs[0], str) else "auto",
    )  # fmt: skip
    study = Study.create(folder / "study", settings)
    found.passed.append("init")
    study.plan(2, repeats=1)
    found.passed.append("plan")
    records = study.measure(2)
    if len(records) != 2 or not all(np.isfinite(r.measurement.means["psnr"]) for r in records):
        found.wrong = f"{len(records)} of 2 configurations were measured"
        return
    found.passed.append("measure")
    inside = study.workspace
    configuration = inside.space.uniform(Option.parse("uaq-4"))
    save_configuration(inside, configuration, folder / "packed", {})
    found.passed.append("export")
    inside.switch.apply(configuration)
    expected = inside.generator(0, 1)
    inside.switch.restore()
    made = Generator(load_pipeline(str(folder / "packed")), inside.generation)(0, 1)
    if np.abs(made - expected).max() > ROUNDING:
        found.wrong = f"pictures of the loaded export differ by up to {np.abs(made - expected).max():.1e}"
        return
    found.passed.append("load")
    found.remark = _remark(inside)


def _remark(study: Any) -> str:
    said = [f"{len(study.graph.layers)} units of {', '.join(f'`{name}`' for name in study.denoisers)}"]
    if study.generator.one_by_one:
        said.append("one image per call")
    return ", ".join(said)
