"""Study: the stages in order over one folder; the Python face of the tool.

Each stage reads what the stage before left in the folder and leaves its own result there, so every stage can be
run alone, repeated, and resumed after a kill.
"""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qua2sedimo import zoo
from qua2sedimo.bank import Bank, stored_weight
from qua2sedimo.denoisers import (
    Graph,
    WeightLayer,
    capture_call,
    denoiser_checkpoint,
    denoiser_of,
    load_pipeline,
    trace,
    unit_weight,
    weight_modules,
)
from qua2sedimo.denoisers.hub_names import public_name
from qua2sedimo.denoisers.layers import refuse_without_weights
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json, write_json
from qua2sedimo.formats.tensorfiles import Checkpoint
from qua2sedimo.images.batches import fitting_batch
from qua2sedimo.images.generate import BATCH, Generation, Generator, check_arguments, check_inputs
from qua2sedimo.images.latents import can_observe
from qua2sedimo.images.pictures import Pictures
from qua2sedimo.images.reference import ReferenceStore
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.originals import Source, checkpoint_source, files_of
from qua2sedimo.measuring.switch import Switch
from qua2sedimo.metrics.catalogue import check_measurable, check_metrics
from qua2sedimo.objective import Objective
from qua2sedimo.options import Configuration, SearchSpace, options_for
from qua2sedimo.predictor import Encoding, Ensemble, FitSettings
from qua2sedimo.records import Record, Records
from qua2sedimo.runtime import save_packed
from qua2sedimo.sampling import Sampler, read_list
from qua2sedimo.search import Budget, Constraints, budget_bytes
from qua2sedimo.sensitivity import BlockScores, Scores, Sensitivity
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.settings import StudySettings
from qua2sedimo.study.stages import choose as choosing
from qua2sedimo.study.stages import fit as fitting
from qua2sedimo.study.stages import measure as measuring
from qua2sedimo.study.stages import search as searching
from qua2sedimo.study.stages.measure import Workers
from qua2sedimo.system.progress import Progress, silent
from qua2sedimo.system.quiet import quiet
from qua2sedimo.system.versions import versions

_MOST_WORKERS = 8  # layers quantized side by side: each needs some 30 bytes a weight


class Study:
    """A study folder and its stages.

    >>> study = Study.create("demo", StudySettings(model="avatars-pixart", inputs=["red hair"]))  # doctest: +SKIP
    >>> study.measure(100); study.fit(); study.explain(); study.choose(3.5)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, pipeline: Any = None) -> None:
        """Open a study folder; ``pipeline`` is used instead of loading the model named in study.yaml."""
        self.folder = Path(folder)
        self.settings = StudySettings.load(self.folder / "study.yaml")
        self._given = pipeline

    @classmethod
    def create(cls, folder: str | Path, settings: StudySettings, pipeline: Any = None) -> Study:
        """Make a study folder, or open it if it asks for just the same; another study there is refused."""
        path = Path(folder) / "study.yaml"
        loaded = None
        check_metrics(settings.metrics)
        options_for(settings.options, (64, 64))
        if path.exists():
            if not StudySettings.load(path).asks_the_same_as(settings):
                raise Qua2SeDiMoError(
                    f"{folder} holds a study of '{StudySettings.load(path).model}' with other settings",
                    "Choose another folder, or open this one with the stage commands.",
                )
        else:  # a model that cannot be loaded leaves no folder behind
            loaded = pipeline if pipeline is not None else load_pipeline(settings.model)
            denoiser_of(loaded, settings.component)
            check_inputs(loaded, settings.inputs)
            check_arguments(loaded, settings.arguments)
            _check_metrics(settings, loaded)
            settings.save(path)
        study = cls(folder, pipeline)
        if loaded is not None:
            study.pipeline = loaded  # it need not be loaded again
        return study

    @property
    def pipeline_given(self) -> bool:
        """Whether the pipeline was handed over in memory, so that no other process can load it."""
        return self._given is not None

    # What is studied -------------------------------------------------------------------------------------------

    @cached_property
    def pipeline(self) -> Any:
        pipeline = self._given if self._given is not None else load_pipeline(self.settings.model)
        check_inputs(pipeline, self.settings.inputs)
        return pipeline

    @cached_property
    def component(self) -> str:
        return denoiser_of(self.pipeline, self.settings.component)[0]

    @cached_property
    def denoiser(self) -> torch.nn.Module:
        return denoiser_of(self.pipeline, self.settings.component)[1]

    @cached_property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The denoiser's weight layers by name."""
        return weight_modules(self.denoiser)

    @property
    def generation(self) -> Generation:
        """What is painted; how many at once is decided by :attr:`batch`."""
        return Generation(self.settings.inputs, self.settings.arguments, self.settings.seed)

    @property
    def batch_is_known(self) -> bool:
        """Whether :attr:`batch` can be told without trying."""
        return self.settings.batch != "auto" or (self.folder / "batch.json").exists()

    @cached_property
    def batch(self) -> int:
        """Images a call of the pipeline: as asked, or as many as fit, found once and kept in batch.json.

        It is the same for all measurements, since the last bits of an image depend on it.
        """
        if self.settings.batch != "auto":
            return self.settings.batch
        path = self.folder / "batch.json"
        if not path.exists():
            write_json(path, fitting_batch(self.pipeline, self.generation, min(BATCH, self.settings.images)))
        found = read_json(path)
        if not isinstance(found, int) or found < 1:
            raise Qua2SeDiMoError(f"{path} holds no number of images: {found!r}", "Delete it; it will be found anew.")
        return found

    @cached_property
    def generator(self) -> Generator:
        return Generator(self.pipeline, replace(self.generation, batch=self.batch))

    @cached_property
    def graph(self) -> Graph:
        """The graph, from graph.json or traced from one real call of the denoiser."""
        path = self.folder / "graph.json"
        if path.exists():
            return Graph.load(path)
        refuse_without_weights(self.denoiser)
        call = capture_call(self.pipeline, self.denoiser, Generator(self.pipeline, self.generation).call_arguments([0]))
        graph = trace(self.denoiser, call.args, call.kwargs, parts=True, ties=True)
        graph.save(path)
        return graph

    @cached_property
    def space(self) -> SearchSpace:
        """Layers that can be measured, without those kept in 16 bits, and their options."""
        layers = self.graph.layers
        idle = [p for p in self.settings.keep if not any(_matches(layer, p) for layer in layers.values())]
        if idle:
            raise Qua2SeDiMoError(f"keep: no layer matches '{idle[0]}'", "See `qua2sedimo inspect MODEL`.")
        shapes = {
            name: layer.shape
            for name, layer in layers.items()
            if not any(_matches(layer, pattern) for pattern in self.settings.keep)
        }
        if not shapes:
            raise Qua2SeDiMoError("keep: no layer is left to quantize", "Keep fewer layers.")
        return SearchSpace.of(shapes, self.settings.options)

    def weight(self, layer: str) -> torch.Tensor:
        """The 16-bit weight of a layer or part that is quantized.

        From the checkpoint's files if the model is a folder, so that no model has to be loaded for it, else from the
        denoiser.
        """
        unit = self.graph.layers[layer]
        name = f"{unit.module}.weight"
        if self._checkpoint is not None and name in self._checkpoint:
            whole = stored_weight(self._checkpoint(name).float())  # as a pipeline in fp32 holds it
            return whole if unit.span is None else whole[:, unit.span[0] : unit.span[1]].contiguous()
        return stored_weight(unit_weight(self.modules, unit))

    @cached_property
    def copies(self) -> dict[str, tuple[str, ...]]:
        """Module name → other modules with the same weights, which get the same option."""
        layers = (self.graph.layers[name] for name in self.space.layers)
        return {layer.module: layer.copies for layer in layers if layer.copies}

    @cached_property
    def _checkpoint(self) -> Checkpoint | None:
        return None if self._given is not None else denoiser_checkpoint(self.settings.model, self.settings.component)

    @cached_property
    def identity(self) -> str:
        """Names the search space and the very weights: what belongs to other ones is refused, not mixed."""
        checksum = 0
        for layer in self.space.layers:
            weight = self.weight(layer).cpu().contiguous()
            checksum = zlib.crc32(weight.view(torch.int16).numpy().tobytes(), checksum)
        return f"{self.space.hash}-{checksum:08x}"

    @cached_property
    def objective(self) -> Objective:
        """What is maximised."""
        macs = {name: self.graph.layers[name].macs for name in self.space.layers}
        return Objective.parse(self.settings.objective, self.space.weights, macs)

    # Stages ----------------------------------------------------------------------------------------------------

    def build_bank(self, progress: Progress = silent) -> Bank:
        """Quantize every option of every layer, or open the bank if that was done."""
        index = self.folder / "bank" / "index.json"
        if index.exists():
            return Bank(index.parent, self.space, self.identity)
        total = len(self.space.layers)
        workers = min(_MOST_WORKERS, torch.get_num_threads())
        return Bank.build(
            index.parent,
            self.space,
            self.identity,
            self.weight,
            lambda done: progress(done, total, "quantizing layers"),
            workers,
        )

    @cached_property
    def bank(self) -> Bank:
        return self.build_bank()

    @cached_property
    def records(self) -> Records:
        return Records(self.folder / "records.db", self.identity, self.settings.protocol)

    @cached_property
    def switch(self) -> Switch:
        return Switch(self.denoiser, self.bank, self.graph.layers, self.original_weights())

    def original_weights(self) -> Source | None:
        """Reads original weights from the files the denoiser came from, if there are any."""
        return checkpoint_source(self._checkpoint or files_of(self.denoiser), self.graph.layers)

    @cached_property
    def sampler(self) -> Sampler:
        """The sequence of configurations to measure."""
        s = self.settings
        listed = read_list(self.folder / s.configurations, self.space) if s.configurations is not None else []
        return Sampler(s.sampler, self.space, s.seed, s.bits_range, self.graph.layers, listed)

    def measurer(
        self, start: int, stop: int, generator: Generator | None = None, switch: Switch | None = None
    ) -> Measurer:
        """Measures images ``start`` to ``stop``; a trial brings a generator and a switch of its own."""
        metrics = list(dict.fromkeys([*self.objective.metrics, *self.settings.metrics]))
        generator, switch = generator or self.generator, switch or self.switch
        return Measurer(
            generator, switch, metrics, range(start, stop), self.input_score, self.real_pictures, self.references
        )

    @property
    def references(self) -> ReferenceStore:
        """Full-precision images of the study, on disk: those of these weights, this protocol and this batch."""
        key = f"{self.identity}-{self.settings.protocol}-{self.batch}"
        return ReferenceStore(self.folder / "reference", key)

    def full_precision(self, images: range) -> np.ndarray:
        """Full-precision images, read if they were made before."""

        def make() -> Pictures:
            self.switch.restore()
            return Pictures(self.generator(images.start, images.stop))

        return self.references(images, False, make).images

    @property
    def input_score(self) -> Callable[[np.ndarray, Sequence[str | int]], np.ndarray] | None:
        """Answers the ``accuracy`` metric, for zoo models only."""
        return zoo.input_score(self.settings.model) if self.settings.model in zoo.ENTRIES else None

    @property
    def real_pictures(self) -> np.ndarray | None:
        """What metrics against real pictures compare with (uint8), for zoo models only."""
        return zoo.reference_images(self.settings.model) if self.settings.model in zoo.ENTRIES else None

    def measure(
        self, configurations: int, progress: Progress = silent, workers: Workers = Workers(), again: bool = False
    ) -> list[Record]:
        """Measure random configurations until ``configurations`` exist; those measured before are kept.

        ``workers``: who measures, this process unless told; ``again``: also what failed before.
        """
        return measuring.measure_samples(self, configurations, progress, workers, again)

    def fit(self, settings: FitSettings | None = None, progress: Progress = silent) -> Ensemble:
        """Fit the predictor to the sampled records, or load it if it was fitted to just these."""
        return fitting.fit(self, settings, progress)

    @cached_property
    def encoding(self) -> Encoding:
        return Encoding(self.graph, self.space, self.bank)

    def training_data(self, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        """(option indices [records, layers], objective [records], higher is better)."""
        return fitting.training_data(self, records)

    def ensemble(self) -> Ensemble:
        """The fitted predictor; raises if `fit` has not been run."""
        return fitting.fitted(self)[0]

    def explain(self) -> Scores:
        """Score every option of every layer, and leave the scores in sensitivity.json."""
        return fitting.explain(self)

    def block_scores(self) -> BlockScores:
        """Score every setting of every block."""
        return fitting.block_scores_of(self)

    def sensitivity(self, ending: str = "csv") -> Sensitivity:
        """What each option of each layer is expected to cost the objective; written as tables too, csv or parquet."""
        return fitting.sensitivity(self, ending)

    def check_budget(self, bits: float) -> int:
        """The budget in packed bytes; raises with the reachable range if it cannot be met."""
        return budget_bytes(self.space, Budget(bits))

    def choose(
        self,
        budget: float | Budget,
        candidates: int | None = None,
        progress: Progress = silent,
        constraints: Constraints | None = None,
    ) -> Choice:
        """The best measured configuration within the budget (a number: average bits), overhead counted.

        Integer programs over the predictor's scores (of all folds, and of each alone), over additive sensitivities
        and over the training-free sum of relative errors propose ``candidates`` (8 unless told); each is measured on
        the same fresh images, and the best measured one is kept. A choice made before for this fit, or found by a
        search, is returned as it is, unless another number of candidates is asked for.
        """
        return choosing.choose(self, _budget(budget), candidates, constraints, progress)

    def search(
        self,
        budget: float | Budget,
        images: int,
        progress: Progress = silent,
        constraints: Constraints | None = None,
    ) -> searching.Found:
        """Spend at most ``images`` images to find the best configuration within the budget; see stages/searching.py."""
        return searching.search(self, _budget(budget), images, constraints, progress)

    def measured_choice(self, budget: float | Budget, configurations: int = 100, progress: Progress = silent) -> Choice:
        """All stages up to the choice, as `qua2sedimo run` takes them: measure, search, fit; resumes."""
        return searching.measured_choice(self, _budget(budget), configurations, progress)

    def export(self, what: float | Budget | Choice, out: str | Path, act_bits: int | None = None) -> Any:
        """Write a choice, or that for a budget, as a packed diffusers pipeline folder; returns its sizes.

        ``act_bits`` is the width of activations in the loaded model (None: they stay as they are).
        """
        choice = what if isinstance(what, Choice) else self.choose(what)
        provenance = {
            "model": public_name(self.settings.model),
            "average_bits": choice.average_bits,
            "origin": choice.origin,
            "arguments": self.settings.arguments,
            "inputs": list(self.settings.inputs),
            "versions": versions(),
        }
        return self.save_configuration(choice.configuration, out, provenance, act_bits)

    def save_configuration(
        self, configuration: Configuration, out: str | Path, extra: dict[str, Any], act_bits: int | None = None
    ) -> Any:
        """Write any configuration as a packed pipeline folder, ``extra`` kept as JSON; returns its sizes in bytes."""
        self.switch.restore()
        values = self.bank.values(configuration)
        with quiet():
            return save_packed(self.pipeline, self.component, values, Path(out), extra, self.copies, act_bits)


def _check_metrics(settings: StudySettings, pipeline: Any) -> None:
    """Raise if a metric the study asks for cannot be had of this pipeline."""
    shipped = settings.model in zoo.ENTRIES
    names = [*Objective.parse(settings.objective).metrics, *settings.metrics]
    check_measurable(names, settings.inputs, judge=shipped, real=shipped, latents=can_observe(pipeline))


def _budget(budget: float | Budget) -> Budget:
    return budget if isinstance(budget, Budget) else Budget(budget)


def _matches(layer: WeightLayer, pattern: str) -> bool:
    """Whether a layer of this unit, or a copy, is meant by the pattern; layers are kept whole."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (layer.module, *layer.copies))
