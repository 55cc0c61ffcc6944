"""Study: the stages over one folder; the Python interface."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from qua2sedimo import zoo
from qua2sedimo.denoisers import denoisers_named, load_pipeline, weight_modules, weight_of
from qua2sedimo.denoisers.components import refuse_beside
from qua2sedimo.denoisers.layers import refuse_unsuitable
from qua2sedimo.denoisers.pipelines import check_given
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.generate import check_arguments, check_inputs
from qua2sedimo.images.latents import can_observe
from qua2sedimo.images.varied import varied_inputs
from qua2sedimo.interchange.targets import space_for
from qua2sedimo.metrics.catalogue import check_measurable, check_metrics
from qua2sedimo.objective import Objective
from qua2sedimo.options import options_for
from qua2sedimo.study import stages
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.memory import within_memory

#: Inputs of a study whose user gave none.
_INPUTS = 24

P = ParamSpec("P")
T = TypeVar("T")


def _stage(function: Callable[Concatenate[Workspace, P], T]) -> Callable[Concatenate[Study, P], T]:
    """A stage, a function of a workspace, as a method of :class:`Study`."""

    @functools.wraps(function)
    def method(self: Study, *args: P.args, **kwargs: P.kwargs) -> T:
        with within_memory(f"{self.folder}: this does not fit into memory"):
            return function(self.workspace, *args, **kwargs)

    return method


class Study:
    """A study folder and its stages.

    Each stage reads the results of earlier stages from the folder and stores its own there, so every stage can be run
    alone, repeated, and resumed after a kill. Model, records and files are in its ``workspace``.

    >>> study = Study.create("demo", StudySettings(model="avatars-pixart", inputs=["red hair"]))  # doctest: +SKIP
    >>> study.measure(100); study.fit(); study.explain(); study.choose(3.5)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, pipeline: Any = None) -> None:
        """Open a study folder; ``pipeline`` is used instead of loading the model that study.yaml names."""
        self.workspace = Workspace(folder, pipeline)

    @property
    def folder(self) -> Path:
        return self.workspace.folder

    @classmethod
    def create(cls, folder: str | Path, settings: StudySettings, pipeline: Any = None) -> Study:
        """Create a study folder, or open one with the same settings; raises :class:`Qua2SeDiMoError` if they differ.

        Without ``inputs``, a new study has varied prompts or classes, and one that is there keeps its own.
        """
        path = Path(folder) / "study.yaml"
        loaded = None
        check_metrics(settings.metrics)
        options_for(settings.options, (64, 64))
        if path.exists():
            there = StudySettings.load(path)
            if not settings.inputs:
                settings = settings.model_copy(update={"inputs": there.inputs})
            if there.asks_the_same_as(settings):
                if there != there.placed_as(settings):
                    there.placed_as(settings).save(path)
            else:
                raise Qua2SeDiMoError(
                    f"{folder} holds a study of '{there.model}' with other settings",
                    "Choose another folder, or open this one with the stage commands.",
                )
        else:  # a model that cannot be loaded leaves no folder behind
            if pipeline is not None:
                check_given(pipeline, settings.component, settings.loading)
            loaded = pipeline if pipeline is not None else load_pipeline(settings.model, settings.loading)
            named = denoisers_named(loaded, settings.component)
            denoisers = list(named.values())
            for denoiser in denoisers:
                refuse_unsuitable(denoiser)
            if settings.target is not None:
                refuse_beside(named, settings.target)
            _check_target(settings, denoisers)
            if not settings.inputs:
                settings = settings.model_copy(update={"inputs": varied_inputs(loaded, denoisers[0], _INPUTS)})
            check_inputs(loaded, settings.inputs)
            check_arguments(loaded, settings.arguments)
            _check_metrics(settings, loaded)
            settings.save(path)
        study = cls(folder, pipeline)
        if loaded is not None:
            study.workspace.pipeline = loaded  # saves loading it again
        return study

    # One line per stage, in the order in which they are run.
    observe = _stage(stages.observe.observe)
    quantize = _stage(stages.quantize.quantize)
    plan = _stage(stages.plan.plan)
    measure = _stage(stages.measure.measure)
    fit = _stage(stages.fit.fit)
    explain = _stage(stages.explain.explain)
    sensitivity = _stage(stages.explain.sensitivity)
    expected_damage = _stage(stages.explain.expected)
    choose = _stage(stages.choose.choose)
    search = _stage(stages.search.search)
    quick = _stage(stages.quick.quick)
    polish = _stage(stages.polish.polish)
    frontier = _stage(stages.frontier.frontier)
    run = _stage(stages.search.run)
    export = _stage(stages.export.export)
    compare = _stage(stages.compare.compare)


def _check_metrics(settings: StudySettings, pipeline: Any) -> None:
    """Raise :class:`Qua2SeDiMoError` if a metric of the study cannot be measured with this pipeline."""
    shipped = settings.model in zoo.ENTRIES
    names = [*Objective.parse(settings.objective).metrics, *settings.metrics]
    check_measurable(names, settings.inputs, judge=shipped, real=shipped, latents=can_observe(pipeline))


def _check_target(settings: StudySettings, denoisers: Sequence[nn.Module]) -> None:
    """Raise :class:`Qua2SeDiMoError` if the program that the study is for could load no layer quantized."""
    if settings.target is None:
        return
    shapes = {n: tuple(weight_of(m).shape) for d in denoisers for n, m in weight_modules(d).items()}
    space_for(settings.target, shapes, settings.options, torch.float16)
