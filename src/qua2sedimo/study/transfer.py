"""Transferring: the options that were chosen for a base model, used on a fine-tune of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qua2sedimo.denoisers import Graph, WeightLayer, denoisers_named, load_pipeline
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import check_arguments, check_inputs
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.study.stages.polish import polish
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

_NAMED = 3  # layers that an error names


def transferred(
    choice_file: str | Path, model: str, folder: str | Path, progress: Progress = silent, pipeline: Any = None
) -> tuple[Workspace, Choice]:
    """The choice in a study's folder for another ``model`` with the same layers: its workspace, and the choice there.

    Nothing is searched: every layer gets the option of the base model's layer of the same name and shape. With rounding
    that compensates, the new model is observed with the prompts and arguments of the base model's study, and rounded by
    its own statistics; a choice that was polished is polished again. ``folder`` keeps what takes long, so that an
    interrupted run continues; ``pipeline`` is used instead of loading ``model``.

    Raises :class:`Qua2SeDiMoError` if the file is not a choice in a study's folder, or layers differ.
    """
    path = Path(choice_file)
    base, chosen = Workspace(_study_of(path)), Choice.load(path)
    study = _workspace(base.settings, chosen, model, Path(folder), pipeline)
    own = matched(chosen.configuration, base.graph, study.graph)
    shapes = {name: study.graph.layers[name].shape for name in own}
    # Only what was chosen is quantized: no setting says that.
    study.candidates = SearchSpace(shapes, {name: (option,) for name, option in own.items()})
    study.build_bank(progress)
    kept = study.folder / "choices" / f"{chosen.name}.json"
    if kept.exists() and (found := Choice.load(kept)).owner == study.identity and found.configuration == own:
        return study, found
    best = Candidate(
        origin=chosen.origin, configuration=own, average_bits=study.space.average_bits(own), predicted=math.nan,
        measured={},
    )  # fmt: skip
    # The budget names the file; the new model may have a few weights more than it allows.
    made = Choice.of(best, study.space, study.identity, chosen.budget, constraints=chosen.constraints)
    if chosen.polished is not None:
        made = polish(study, made, progress)
    made.save(kept)
    return study, made


def matched(configuration: Mapping[str, Option], base: Graph, own: Graph) -> Configuration:
    """The configuration of a base model for the units of another model's graph.

    Modules that were copies of one unit in the base model may differ in the other: each gets the unit's option. Raises
    :class:`Qua2SeDiMoError` that names layers which the other model lacks, or has in another shape.
    """
    options: dict[tuple[str, tuple[int, int] | None], tuple[Option, tuple[int, ...]]] = {}
    for name, option in configuration.items():
        unit = base.layers[name]
        options |= dict.fromkeys(_places(unit), (option, unit.shape))
    found: dict[str, Option] = {}
    reached: set[tuple[str, tuple[int, int] | None]] = set()
    for name, unit in own.layers.items():
        known = next((options[place] for place in _places(unit) if place in options), None)
        if known is not None and known[1] == unit.shape:
            found[name] = known[0]
            reached |= {*_places(unit)}
    lacking = [f"{module}{list(span) if span else ''}" for module, span in options if (module, span) not in reached]
    if lacking:
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        raise Qua2SeDiMoError(
            "the model lacks layers that were chosen for, or has them in another shape: "
            f"{', '.join(lacking[:_NAMED])}{more}",
            "A choice fits models of the same architecture; make a study of this model: qua2sedimo run MODEL STUDY.",
        )
    return Configuration(found)


def _places(unit: WeightLayer) -> list[tuple[str, tuple[int, int] | None]]:
    return [(module, unit.span) for module in (unit.module, *unit.copies)]


def _study_of(path: Path) -> Path:
    """The study that a choice's file belongs to."""
    folder = path.resolve().parent.parent
    if not path.is_file() or not (folder / "study.yaml").is_file():
        raise Qua2SeDiMoError(
            f"{path} is not the file of a choice in a study's folder", "Name one, such as STUDY/choices/3.5.json."
        )
    return folder


def _workspace(base: StudySettings, chosen: Choice, model: str, folder: Path, pipeline: Any) -> Workspace:
    """A workspace for the model with the settings of the base model's study, in a new folder or one begun for it."""
    changes: dict[str, Any] = {
        "model": model,
        "options": ",".join(sorted({str(option) for option in chosen.configuration.values()})),
        "rounding": "compensated" if base.compensates else "nearest",
        "sampler": "spread", "configurations": None, "keep": [],
        "variant": None, "revision": None,  # of the base model's files
    }  # fmt: skip
    settings = StudySettings.model_validate({**base.model_dump(), **changes})
    path = folder / "study.yaml"
    if path.exists() and not StudySettings.load(path).asks_the_same_as(settings):
        raise Qua2SeDiMoError(f"{folder} was begun for another model, choice or settings", "Choose another folder.")
    loaded = pipeline if pipeline is not None else load_pipeline(model, settings.loading)
    denoisers_named(loaded, settings.component)
    check_inputs(loaded, settings.inputs)
    check_arguments(loaded, settings.arguments)
    if not path.exists():
        settings.save(path)
    study = Workspace(folder, pipeline)
    study.pipeline = loaded  # saves loading it again
    return study
