"""Study: the stages in order over one folder; the Python face of the tool.

Each stage reads what the stage before left in the folder and leaves its own result there, so every stage can be
run alone, repeated, and resumed after a kill.
"""

from __future__ import annotations

import fnmatch
import json
import platform
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qua2sedimo import zoo
from qua2sedimo.bank import Bank, stored_weight
from qua2sedimo.choices import Candidate, Choice
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
from qua2sedimo.denoisers.layers import refuse_without_weights
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation import Generation, Generator, Measurement, Measurer, Switch
from qua2sedimo.evaluation.generate import check_arguments, check_inputs
from qua2sedimo.evaluation.metrics import check_metrics, metric
from qua2sedimo.evaluation.sampling import sample
from qua2sedimo.files import read_json
from qua2sedimo.options import Configuration, SearchSpace, options_for
from qua2sedimo.predictor import Encoding, Ensemble, FitSettings, fit_additive, fit_ensemble, relative_errors
from qua2sedimo.quiet import quiet
from qua2sedimo.records import Record, Records
from qua2sedimo.runtime import save_packed
from qua2sedimo.search import Budget, budget_bytes, propose
from qua2sedimo.sensitivity import Scores, op_scores
from qua2sedimo.settings import StudySettings
from qua2sedimo.tensorfiles import Checkpoint

_MOST_WORKERS = 8  # layers quantized side by side: each needs some 30 bytes a weight

#: Called with (done, total, what is being done).
Progress = Callable[[int, int, str], object]


def silent(done: int, total: int, what: str) -> None:
    return None


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
        check_metrics([settings.objective, *settings.metrics])
        options_for(settings.options, (64, 64))
        if path.exists():
            if StudySettings.load(path) != settings:
                raise Qua2SeDiMoError(
                    f"{folder} holds a study of '{StudySettings.load(path).model}' with other settings",
                    "Choose another folder, or open this one with the stage commands.",
                )
        else:  # a model that cannot be loaded leaves no folder behind
            pipeline = pipeline if pipeline is not None else load_pipeline(settings.model)
            denoiser_of(pipeline, settings.component)
            check_inputs(pipeline, settings.inputs)
            check_arguments(pipeline, settings.arguments)
            settings.save(path)
        return cls(folder, pipeline)

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

    @cached_property
    def generator(self) -> Generator:
        s = self.settings
        return Generator(self.pipeline, Generation(s.inputs, s.arguments, s.seed, s.batch))

    @cached_property
    def graph(self) -> Graph:
        """The graph, from graph.json or traced from one real call of the denoiser."""
        path = self.folder / "graph.json"
        if path.exists():
            return Graph.load(path)
        refuse_without_weights(self.denoiser)
        call = capture_call(self.pipeline, self.denoiser, self.generator.call_arguments([0]))
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
        return Switch(self.denoiser, self.bank, self.graph.layers)

    def measurer(self, start: int, stop: int) -> Measurer:
        metrics = list(dict.fromkeys([self.settings.objective, *self.settings.metrics]))
        return Measurer(self.generator, self.switch, metrics, range(start, stop), self.input_score)

    @property
    def input_score(self) -> Callable[[np.ndarray, Sequence[str | int]], np.ndarray] | None:
        """Answers the ``accuracy`` metric, for zoo models only."""
        return zoo.input_score(self.settings.model) if self.settings.model in zoo.ENTRIES else None

    def measure(self, configurations: int, progress: Progress = silent) -> list[Record]:
        """Measure random configurations until ``configurations`` exist; those measured before are kept."""
        done = {record.number for record in self.records.all("sample")}
        measure = self.measurer(0, self.settings.images)
        s = self.settings
        try:
            for number in range(configurations):
                if number not in done:
                    configuration = sample(self.space, s.sampler, s.seed, number, s.bits_range)
                    self._record("sample", number, configuration, measure(configuration))
                progress(number + 1, configurations, "measuring configurations")
        finally:
            self.switch.restore()
        return self.records.all("sample")

    def fit(self, settings: FitSettings | None = None, progress: Progress = silent) -> Ensemble:
        """Fit the predictor to the sampled records, or load it if it was fitted to just these."""
        settings = settings or FitSettings(loss=self.settings.loss, seed=self.settings.seed)
        records = self._samples()
        owner = self._owner(records) + json.dumps(asdict(settings), sort_keys=True)
        folder = self.folder / "predictor"
        summary = folder / "predictor.json"
        if summary.exists() and read_json(summary).get("owner") == owner:
            return Ensemble.load(folder, owner)
        choices, objective = self.training_data(records)
        total = settings.folds * settings.epochs
        ensemble = fit_ensemble(
            self.encoding,
            choices,
            objective,
            settings,
            lambda fold, epoch: progress(fold * settings.epochs + epoch, total, "fitting the predictor"),
        )
        ensemble.save(folder, owner)
        return ensemble

    @cached_property
    def encoding(self) -> Encoding:
        return Encoding(self.graph, self.space, self.bank)

    def training_data(self, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        """(option indices [records, layers], objective [records], higher is better)."""
        choices = np.stack([self.space.encode(r.configuration) for r in records])
        return choices, self._sign * np.array([r.value(self.settings.objective) for r in records])

    def ensemble(self) -> Ensemble:
        """The fitted predictor; raises if `fit` has not been run."""
        return self._fitted()[0]

    def explain(self) -> Scores:
        """Score every option of every layer, and leave the scores in sensitivity.json."""
        ensemble, owner = self._fitted()
        scores = op_scores(self.space, self.encoding, ensemble)
        scores.save(self.folder / "sensitivity.json", owner)
        return scores

    def check_budget(self, bits: float) -> int:
        """The budget in packed bytes; raises with the reachable range if it cannot be met."""
        return budget_bytes(self.space, Budget(bits))

    def choose(self, bits: float, candidates: int | None = None, progress: Progress = silent) -> Choice:
        """The best measured configuration of at most ``bits`` average bits, overhead counted.

        Integer programs over the predictor's scores (of all folds, and of each alone), over additive sensitivities and
        over the training-free sum of relative errors propose ``candidates`` (8 unless told); each is measured on the
        same fresh images, and the best measured one is kept. A choice made before for this fit is returned as it is,
        unless another number of candidates is asked for.
        """
        nbytes = self.check_budget(bits)
        path = self.folder / "choices" / f"{bits!r}.json"
        ensemble, owner = self._fitted()
        if path.exists():
            made, of = Choice.load(path)
            if of == owner and candidates in (None, len(made.candidates)):
                return made
        proposals = self.propose(nbytes, candidates or 8)
        encoded = np.stack([self.space.encode(configuration) for configuration, _ in proposals])
        predicted = self._sign * ensemble.predict(self.encoding, encoded).mean(axis=0)
        measured = self._measure_candidates(
            [c for c, _ in proposals], f"measuring candidates for {bits:g} bits", progress
        )
        rows = [
            Candidate(origin, configuration, self.space.average_bits(configuration), float(p), m.means)
            for (configuration, origin), p, m in zip(proposals, predicted, measured)
        ]
        best = max(rows, key=lambda row: self._sign * row.measured[self.settings.objective])
        choice = Choice(
            bits, best.configuration, best.average_bits, self.space.nbytes(best.configuration), best.origin,
            best.predicted, best.measured, rows,
        )  # fmt: skip
        choice.save(path, owner)
        return choice

    def _measure_candidates(
        self, configurations: Sequence[Configuration], what: str, progress: Progress
    ) -> list[Measurement]:
        """Each on the same fresh images, twice as many as a sample has; those measured before are read."""
        start = self.settings.images
        measure = self.measurer(start, 3 * start)
        before = self.records.all("candidate")
        done = {r.configuration.digest: r.measurement for r in before}
        number = len(before)
        try:
            for i, configuration in enumerate(configurations):
                if configuration.digest not in done:
                    done[configuration.digest] = measure(configuration)
                    self._record("candidate", number, configuration, done[configuration.digest])
                    number += 1
                progress(i + 1, len(configurations), what)
        finally:
            self.switch.restore()
        return [done[configuration.digest] for configuration in configurations]

    def propose(self, nbytes: int, count: int) -> list[tuple[Configuration, str]]:
        """Distinct candidates within the budget, each with the name of the program that proposed it."""
        scores = self.explain()
        choices, objective = self.training_data(self._samples())
        errors = relative_errors(self.space, self.bank, choices)
        additive = fit_additive(self.graph, self.space, errors, objective)
        error_sum = {
            layer: {option: -error.relative_mse for option, error in options.items()}
            for layer, options in self.bank.errors.items()
        }
        programs = [
            ("predictor", scores.total()),
            ("additive sensitivities", additive.scores(self.space, self.bank)),
            ("sum of relative errors", error_sum),
            *((f"predictor, fold {k + 1}", scores.fold(k)) for k in range(scores.folds)),
        ]
        return propose(self.space, nbytes, programs, count)

    def export(self, bits: float, out: str | Path) -> Any:
        """Write the choice for ``bits`` as a packed diffusers pipeline folder; returns its sizes."""
        choice = self.choose(bits)
        provenance = {
            "model": self.settings.model,
            "average_bits": choice.average_bits,
            "origin": choice.origin,
            "arguments": self.settings.arguments,
            "versions": versions(),
        }
        return self.save_configuration(choice.configuration, out, provenance)

    def save_configuration(self, configuration: Configuration, out: str | Path, extra: dict[str, Any]) -> Any:
        self.switch.restore()
        values = self.bank.values(configuration)
        with quiet():
            return save_packed(self.pipeline, self.component, values, Path(out), extra, self.copies)

    # Helpers ---------------------------------------------------------------------------------------------------

    @property
    def _sign(self) -> int:
        """1 if a larger objective is better, else −1."""
        return 1 if metric(self.settings.objective).higher_is_better else -1

    def _samples(self) -> list[Record]:
        records = self.records.all("sample")
        if not records:
            raise Qua2SeDiMoError(
                f"{self.folder} has no measured configurations",
                f"Run `qua2sedimo measure {self.folder}` first.",
            )
        return records

    def _fitted(self) -> tuple[Ensemble, str]:
        path = self.folder / "predictor" / "predictor.json"
        if not path.exists():
            raise Qua2SeDiMoError(f"{self.folder} has no predictor", f"Run `qua2sedimo fit {self.folder}` first.")
        owner = str(read_json(path).get("owner"))
        if not owner.startswith(self.identity):
            raise Qua2SeDiMoError(f"{path} was fitted to another space", f"Run `qua2sedimo fit {self.folder}` again.")
        return Ensemble.load(path.parent, owner), owner

    def _owner(self, records: Iterable[Record]) -> str:
        measured = zlib.crc32(" ".join(f"{r.number}:{r.configuration.digest}" for r in records).encode())
        return f"{self.identity} {self.settings.protocol} {measured:08x} "

    def _record(self, role: str, number: int, configuration: Configuration, measurement: Measurement) -> None:
        bits = self.space.average_bits(configuration)
        self.records.add(Record(role, number, configuration, bits, measurement), versions())


def _matches(layer: WeightLayer, pattern: str) -> bool:
    """Whether a layer of this unit, or a copy, is meant by the pattern; layers are kept whole."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (layer.module, *layer.copies))


def versions() -> dict[str, str]:
    """Versions that numbers may depend on."""
    packages = ("qua2sedimo", "torch", "diffusers", "transformers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
