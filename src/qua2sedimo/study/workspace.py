"""What stages work on: a study's folder, its model, and the results of earlier stages, each loaded on first use."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qua2sedimo import zoo
from qua2sedimo.bank import Bank, Observed, stored_weight
from qua2sedimo.denoisers import part_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.locks import alone
from qua2sedimo.formats.temporary import clear_leftovers
from qua2sedimo.images.batches import BatchFile, fitting_batch
from qua2sedimo.images.generate import BATCH, Generation, Generator, in_steps
from qua2sedimo.images.ledger import LEARNING, OBSERVED, USE_OF_ROLE
from qua2sedimo.images.pictures import Pictures
from qua2sedimo.images.reference import ReferenceStore
from qua2sedimo.images.varied import varied_inputs
from qua2sedimo.measuring.measurer import Measurer
from qua2sedimo.measuring.run import Crew
from qua2sedimo.measuring.switch import PackedSwitch, Switch
from qua2sedimo.objective import Objective
from qua2sedimo.options import SearchSpace, within_reach
from qua2sedimo.predictor import Encoding
from qua2sedimo.quantizers import QuantizedWeight
from qua2sedimo.records import Record, Records
from qua2sedimo.sampling import Sampler, read_list
from qua2sedimo.search import Budget, Constraints, Evidence, by_gradients
from qua2sedimo.statistics import JoinedStatistics, Observation, Statistics, observe
from qua2sedimo.study.choices import Choice, choice_name, load_values
from qua2sedimo.study.model import StudiedModel
from qua2sedimo.study.parts import LARGE, DenoiserPart
from qua2sedimo.study.weighing import weigh, weigh_one_by_one
from qua2sedimo.system.elsewhere import Elsewhere
from qua2sedimo.system.memory import return_memory
from qua2sedimo.system.progress import Progress, silent

#: Where files are written: what interrupted processes left there is removed.
_FOLDERS = (
    ".", "bank", "choices", "comparison", "figures", "predictor", "reference", "search", "statistics",
    "statistics/calls",
)  # fmt: skip
_USUAL_BITS = 3.5  # the default budget of commands
_OBSERVED_SMALL, _OBSERVED_LARGE = 128, 24
_STEPS_LARGE = 6
_TEXTS = 256  # prompts that are only encoded
#: Prior standard deviations of a search, narrower than the predictor's. It adds up what the model says of many options
#: that few measurements touched: under a wide prior it would pick those that look good by luck.
_PRIOR = {"error": 0.4, "operation": 0.6, "block": 0.6, "layer": 0.6}
_MOST_WORKERS = 8  # layers quantized in parallel: each needs about 30 bytes per weight


class Workspace(StudiedModel):
    """A study as its stages see it; every stage is a function of a workspace.

    ``pipeline`` is used instead of loading the model that study.yaml names.
    """

    def __init__(self, folder: str | Path, pipeline: Any = None) -> None:
        """Open a study folder; raises :class:`Qua2SeDiMoError` if study.yaml is missing or invalid."""
        super().__init__(folder, pipeline)
        for name in _FOLDERS:
            clear_leftovers(self.folder / name)
        #: The active crew; see :func:`qua2sedimo.study.worker.crew`.
        self.crew: Crew | None = None
        #: Workers that make statistics and bank; see :func:`qua2sedimo.study.building.built_by`.
        self.elsewhere: Elsewhere | None = None

    # What can be chosen ----------------------------------------------------------------------------------------

    def original_weight(self, layer: str) -> torch.Tensor:
        """The 16-bit weight of a layer, whatever the live denoiser holds now."""
        return stored_weight(self.switch.originals(layer))

    @property
    def prunes(self) -> bool:
        """Whether options that another dominates are left out: of the default set, which nobody asked for by name."""
        return self.settings.options == "default"

    @property
    def space(self) -> SearchSpace:
        """The layers and the options that can be chosen: of a set that is pruned, those that the bank holds."""
        return self.bank.space if self.prunes else self.candidates

    @cached_property
    def identity(self) -> str:
        """A hash of search space, weights, dtype and statistics: files of other ones are refused."""
        statistics = f"-{self.statistics.digest}" if self.settings.compensates else ""
        return f"{self.candidates.hash}-{self._weights_checksum}{self._precision}{statistics}"

    @property
    def _precision(self) -> str:
        """The dtype as a part of hashes, which those of fp32, once the only one, do not have."""
        return "" if self.dtype == "fp32" else f"-{self.dtype}"

    @cached_property
    def _weights_checksum(self) -> str:
        checksum = 0
        for layer in self.candidates.layers:
            weight = self.weight(layer).cpu().contiguous()
            checksum = zlib.crc32(weight.view(torch.int16).numpy().tobytes(), checksum)
        return f"{checksum:08x}"

    # Calibration statistics ------------------------------------------------------------------------------------

    @property
    def statistics_folder(self) -> Path:
        return self.folder / "statistics"

    @property
    def is_observed(self) -> bool:
        """Whether the statistics that rounding needs are there: without them, neither a bank nor records exist."""
        folders = [self.statistics_folder / name for name in self.settings.several] or [self.statistics_folder]
        return not self.settings.compensates or all(map(Statistics.is_finished, folders))

    @property
    def observed_images(self) -> int:
        """Images that statistics are taken from. Few images of a small denoiser tell too little, and cost nothing."""
        if self.settings.observe != "auto":
            return self.settings.observe
        return _OBSERVED_LARGE if self._is_large else _OBSERVED_SMALL

    @property
    def _is_large(self) -> bool:
        """Whether an image takes long to observe: then there are fewer, in fewer steps, one in each call."""
        return self.candidates.weights >= LARGE

    @property
    def _most_observed_steps(self) -> int | None:
        """Steps in which an observed image is generated, at most; None for as many as others."""
        if self.settings.observe_steps != "auto":
            return self.settings.observe_steps
        return _STEPS_LARGE if self._is_large else None

    @property
    def observed_generation(self) -> Generation:
        """How images are generated that statistics are taken from."""
        found = replace(self.generator.generation, inputs=self.observed_inputs)
        if (most := self._most_observed_steps) is not None:
            found = replace(found, arguments=in_steps(self.pipeline, found.arguments, most))
        return replace(found, batch=1) if self._is_large else found

    @cached_property
    def statistics_key(self) -> str:
        """A hash of what calibration statistics depend on."""
        s = self.settings
        content = [
            self.candidates.layers, f"{self._weights_checksum}{self._precision}", s.component, s.inputs,
            s.observe_inputs, s.arguments, s.seed, self.observed_images,
        ]  # fmt: skip
        if (most := self._most_observed_steps) is not None:
            content.append(f"in {most} steps")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def observed_inputs(self) -> list[str | int]:
        """The inputs that are observed in turn: the study's own, and between them varied ones, so that layers are not
        right for the study's prompts alone."""
        own, count = list(self.settings.inputs), self.observed_images
        others = [one for one in self._other_inputs(count) if one not in own]
        if not own or not others:
            return own or others
        lists = (own, others)
        return [lists[k % 2][k // 2 % len(lists[k % 2])] for k in range(count)]

    @property
    def observed_texts(self) -> list[str]:
        """Prompts that layers which see only the text are observed with besides."""
        return [text for text in self._other_inputs(_TEXTS) if isinstance(text, str)]

    def _other_inputs(self, count: int) -> list[str | int]:
        """At most ``count`` inputs to observe besides the study's own."""
        if self.settings.observe_inputs != "auto":
            return list(self.settings.observe_inputs)[:count]
        if self.settings.model in zoo.ENTRIES:
            return list(zoo.ENTRIES[self.settings.model].varied(count))
        return varied_inputs(self.pipeline, next(iter(self.denoisers.values())), count)

    def observe(self, progress: Progress = silent) -> Statistics | JoinedStatistics:
        """The study's calibration statistics: those in its folder, or made now from images in full precision."""
        if "statistics" not in self.__dict__:
            names = self.settings.several or ("",)
            if self.is_observed:  # needs no model
                graphs = {name: part_of(name, self.graph) if name else self.graph for name in names}
                found = {n: Statistics(self.statistics_folder / n, self._part_key(n), graphs[n].layers) for n in names}
            else:
                found = {part.component: self._observed_part(part, progress) for part in self.parts}
            self.statistics = JoinedStatistics(found) if self.settings.several else found[""]
        return self.statistics

    def _part_key(self, component: str) -> str:
        return f"{self.statistics_key}-{component}" if component else self.statistics_key

    def _observed_part(self, part: DenoiserPart, progress: Progress) -> Statistics:
        return observe(self.statistics_folder / part.component, self.observation(part), progress, self.elsewhere)

    def observation(self, part: DenoiserPart) -> Observation:
        """What is observed of a denoiser, which has its original weights from now on."""
        self.full_precision_generator()
        return Observation(
            Generator(self.pipeline, self.observed_generation), part.denoiser, part.graph, part.units,
            OBSERVED.images(self.observed_images), int(self.settings.memory * 1e9), self._part_key(part.component),
            self.observed_texts, part.component,
        )  # fmt: skip

    @cached_property
    def statistics(self) -> Statistics | JoinedStatistics:
        return self.observe()

    def observed(self, layer: str) -> Observed:
        """The statistics of a layer, empty if rounding is to the nearest level."""
        if not self.settings.compensates:
            return Observed()
        return Observed(self.statistics.moment(layer), self.statistics.gradient(layer))

    def full_precision_generator(self) -> Generator:
        """Generates images with the original weights."""
        if "switch" in self.__dict__:
            self.switch.restore()
        return self.generator

    @cached_property
    def objective(self) -> Objective:
        """What is maximised."""
        return self.parsed(self.settings.objective)

    def parsed(self, objective: str) -> Objective:
        """An objective over the sizes and operations of this study's layers."""
        macs = {name: self.graph.layers[name].macs for name in self.candidates.layers}
        return Objective.parse(objective, self.candidates.weights, macs)

    def build_bank(self, progress: Progress = silent) -> Bank:
        """Quantize every option of every layer, or open a finished bank. Statistics that it needs are made first."""
        if self.settings.compensates:
            self.observe(progress)
        bank = self._built_bank(progress)
        if self.settings.compensates and not bank.changes.complete:
            with alone(bank.folder, lambda: progress(0, 1, "waiting for another process that weighs options")):
                bank = Bank(bank.folder, self.candidates, self.identity)
                if not bank.changes.complete:
                    self._weigh(bank, progress)
        return bank

    def _weigh(self, bank: Bank, progress: Progress) -> None:
        """Complete the bank's changes: by gradients or, in denoisers without any, layer by layer."""
        self.full_precision_generator()
        without = self.statistics.without_gradients
        differentiated = [part for part in self.parts if part.component not in without]
        if differentiated:
            with self.without_offload():  # gradients need the weights themselves
                weigh(bank, differentiated, self.statistics, self.live_weight, progress, self.elsewhere)
        others = [part for part in self.parts if part.component in without]
        if others:
            switch = Switch(self.denoiser, bank, self.graph.layers, self.original_weights())
            weigh_one_by_one(bank, others, self.statistics, switch.write, progress)
        bank.keep_changes(bank.changes.of, complete=True)

    def _built_bank(self, progress: Progress) -> Bank:
        """Every option of every layer, as quantized now or before."""
        folder, space = self.folder / "bank", self.candidates
        if Bank.is_finished(folder, space):
            return Bank(folder, space, self.identity)
        tried = within_reach(space, self._stakes) if self.prunes else space
        total = len(space.layers)
        bank = Bank.build(
            folder, space, self.identity, self.weight, lambda done: progress(done, total, "quantizing layers"),
            self.quantizing_threads, self.observed, self.prunes, tried, self.elsewhere,
        )  # fmt: skip
        if self.settings.compensates:
            self.statistics.forget_moments()
        return_memory()
        return bank

    @property
    def quantizing_threads(self) -> int:
        """Layers that are quantized side by side."""
        return min(_MOST_WORKERS, torch.get_num_threads())

    @property
    def _stakes(self) -> dict[str, float]:
        """What is at stake in each layer, by its statistics: see :func:`qua2sedimo.options.within_reach`."""
        if not self.settings.compensates:
            return {}
        return {layer: self.observed(layer).stake(self.weight(layer)) for layer in self.candidates.layers}

    @cached_property
    def bank(self) -> Bank:
        return self.build_bank()

    @cached_property
    def encoding(self) -> Encoding:
        return Encoding(self.graph, self.space, self.bank)

    @cached_property
    def unmeasured(self) -> Evidence:
        """What is known without measurements: errors of all options, and features with what gradients say of them."""
        errors = {n: {o: e.relative for o, e in self.bank.errors[n].items()} for n in self.space.layers}
        return Evidence(self.space, errors, self.encoding.damage.believing(_PRIOR))

    @cached_property
    def sampler(self) -> Sampler:
        """The sequence of configurations to measure."""
        return self.sampler_of(self.space)

    def sampler_of(self, space: SearchSpace) -> Sampler:
        """The sequence of configurations of a space, by the study's settings; ``near`` needs :attr:`space`."""
        s = self.settings
        listed = read_list(self.folder / s.configurations, space) if s.configurations is not None else []
        damage = cache(lambda: {n: {o: -v for o, v in of.items()} for n, of in by_gradients(self.unmeasured).items()})
        return Sampler(s.sampler, space, s.seed, s.bits_range, self.graph.layers, listed, damage)

    # Images ----------------------------------------------------------------------------------------------------

    @property
    def batch_is_known(self) -> bool:
        """Whether :attr:`batch` is known without a trial."""
        return self.settings.batch != "auto" or (self.folder / "batch.json").exists()

    @cached_property
    def batch(self) -> int:
        """Images per pipeline call: as set, or as many as fit, determined once and stored in batch.json.

        It is the same for all measurements, since the rounding of an image depends on it.
        """
        if self.settings.batch != "auto":
            return self.settings.batch
        path = self.folder / "batch.json"
        if not path.exists():
            with alone(self.folder, name="batch"):  # all processes have that of the first
                if not path.exists():
                    fitting = fitting_batch(self.pipeline, self.generation, min(BATCH, self.settings.images))
                    BatchFile(batch=fitting).save(path)
        return BatchFile.load(path).batch

    @cached_property
    def generator(self) -> Generator:
        return Generator(self.pipeline, replace(self.generation, batch=self.batch), self.denoisers.values())

    @property
    def references(self) -> ReferenceStore:
        """The study's full-precision images on disk, for these weights, this protocol and this batch."""
        key = f"{self.identity}-{self.settings.protocol}-{self.batch}"
        return ReferenceStore(self.folder / "reference", key)

    def full_precision(self, images: range) -> np.ndarray:
        """Full-precision images, read if they are stored."""

        def make() -> Pictures:
            self.switch.restore()
            return Pictures(self.generator.full_precision(images.start, images.stop))

        found = self.references(images, False, make).images
        self.generator.check_reference(found, images.start)
        return found

    @property
    def input_score(self) -> Callable[[np.ndarray, Sequence[str | int]], np.ndarray] | None:
        """Computes the ``accuracy`` metric; zoo models only."""
        return zoo.input_score(self.settings.model) if self.settings.model in zoo.ENTRIES else None

    @property
    def real_pictures(self) -> np.ndarray | None:
        """Real images (uint8), for metrics against them; zoo models only."""
        return zoo.reference_images(self.settings.model) if self.settings.model in zoo.ENTRIES else None

    # Measuring -------------------------------------------------------------------------------------------------

    @cached_property
    def records(self) -> Records:
        return Records(self.folder / "records.db", self.identity, self.settings.protocol)

    def learning_records(self, role: str) -> list[Record]:
        """Records of a role that models may be fitted to: those on images of the learning block."""
        if not USE_OF_ROLE[role].learns:
            raise ValueError(f"records of role '{role}' are for evaluation: no model may be fitted to them")
        return [r for r in self.records.all(role) if r.measurement.start in LEARNING]

    @cached_property
    def switch(self) -> Switch:
        return self.switch_of(self.bank)

    def switch_of(self, bank: Bank) -> Switch:
        """What puts configurations of a bank into the live denoiser."""
        kind = PackedSwitch if self.settings.packed else Switch
        return kind(self.denoiser, bank, self.graph.layers, self.original_weights())

    def measurer(
        self, images: range, generator: Generator | None = None, switch: Switch | None = None,
        metrics: Sequence[str] = (),
    ) -> Measurer:  # fmt: skip
        """Measures configurations on these images; a trial passes its own generator and switch. Without ``metrics``,
        those of the study and its objective are measured.

        Full-precision images are kept in the folder once the study has the statistics that identify it.
        """
        kept = self.references if self.is_observed else None
        metrics = metrics or list(dict.fromkeys([*self.objective.metrics, *self.settings.metrics]))
        generator, switch = generator or self.generator, switch or self.switch
        return Measurer(generator, switch, metrics, images, self.input_score, self.real_pictures, kept)

    # Choices ---------------------------------------------------------------------------------------------------

    def choice_path(self, budget: Budget, constraints: Constraints | None = None) -> Path:
        """Path of the choice for a budget; constraints change the name."""
        return self.folder / "choices" / f"{choice_name(budget, constraints)}.json"

    def values(self, choice: Choice) -> dict[str, QuantizedWeight]:
        """The quantized weights of a choice: those of the bank, or where it was polished, its own."""
        nbytes = self.space.nbytes(choice.configuration)
        if nbytes != choice.nbytes or nbytes > choice.budget_bytes:
            raise Qua2SeDiMoError(
                f"the choice '{choice.name}' was changed: its layers take {nbytes:,} bytes, it says {choice.nbytes:,} "
                f"of at most {choice.budget_bytes:,}",
                Choice.remedy,
            )
        values = self.bank.values(choice.configuration)
        return values | self.polished_values(choice)

    def polished_values(self, choice: Choice) -> dict[str, QuantizedWeight]:
        """The weights of a choice that are not those of the bank."""
        if choice.polished is None:
            return {}
        return load_values(self.folder / "choices", choice.name, choice.polished)

    @property
    def reachable(self) -> SearchSpace:
        """What can be chosen, as far as it is known without a bank."""
        return self.space if self.is_quantized or not self.prunes else self.candidates

    @property
    def is_quantized(self) -> bool:
        """Whether the bank is there, with the statistics it needs."""
        return self.is_observed and Bank.is_finished(self.folder / "bank", self.candidates)

    def choices(self) -> list[Choice]:
        """The stored choices for this space and these weights."""
        kept = [Choice.load(path) for path in sorted((self.folder / "choices").glob("*.json"))]
        return [choice for choice in kept if self.identity in choice.owner]

    def choice_for(self, bits: float | None = None) -> Choice | None:
        """The stored choice for exactly this budget, without constraints; None if there is none.

        Without ``bits``, the one for 3.5 bits, or else the only choice.
        """
        kept = self.choices()
        nbytes = Budget(_USUAL_BITS if bits is None else bits).nbytes(self.candidates.weights)
        for choice in kept:
            if choice.budget_bytes == nbytes and choice.objective is None and not choice.constraints.name:
                return choice
        return kept[0] if bits is None and len(kept) == 1 else None
