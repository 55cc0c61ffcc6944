"""The model of a study: its pipeline, denoisers, graph and weights, and the options that are tried."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from qua2sedimo.bank import stored_weight
from qua2sedimo.denoisers import (
    Graph,
    JoinedDenoisers,
    denoisers_named,
    load_pipeline,
    unit_weight,
    weight_modules,
)
from qua2sedimo.denoisers.loading import DtypeName, dtype_name
from qua2sedimo.denoisers.offload import without_hooks
from qua2sedimo.denoisers.patterns import matching
from qua2sedimo.denoisers.pipelines import loaded_dtype, refuse_given
from qua2sedimo.denoisers.stored import dtype_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import Checkpoint
from qua2sedimo.images.generate import Generation, Generator, check_inputs
from qua2sedimo.interchange.targets import kept_for, space_for
from qua2sedimo.measuring.originals import Source, checkpoint_source, files_of
from qua2sedimo.options import SearchSpace
from qua2sedimo.study.parts import DenoiserPart, checkpoint_of, parts_of, traced
from qua2sedimo.study.settings import StudySettings


class StudiedModel:
    """What a study knows of its model before anything is quantized, each part loaded on first use."""

    def __init__(self, folder: str | Path, pipeline: Any = None) -> None:
        self.folder = Path(folder)
        self.settings = StudySettings.load(self.folder / "study.yaml")
        self._given = pipeline
        if pipeline is not None:
            self.settings = self.settings.model_copy(update={"offload": "none"})  # it is used as it is

    @property
    def pipeline_given(self) -> bool:
        """Whether the pipeline was passed in memory, so that other processes cannot load it."""
        return self._given is not None

    @cached_property
    def pipeline(self) -> Any:
        if self._given is not None:
            refuse_given(self._given, self.settings.component)
        s = self.settings
        pipeline = load_pipeline(s.model, s.loading) if self._given is None else self._given
        check_inputs(pipeline, self.settings.inputs)
        return pipeline

    def without_offload(self) -> AbstractContextManager[None]:
        """Within, weights that are offloaded are where they usually are, on the CPU."""
        return without_hooks(self.pipeline, self.settings.loading)

    @cached_property
    def dtype(self) -> DtypeName:
        """The dtype that the denoiser is loaded in, ``fp32``, ``bf16`` or ``fp16``."""
        if self.settings.dtype != "auto" and not self.pipeline_given:
            return self.settings.dtype
        stored = None if self.pipeline_given else loaded_dtype(self.settings.model, self.settings.loading)
        return dtype_of(self.denoiser) if stored is None else dtype_name(stored)

    @cached_property
    def denoisers(self) -> dict[str, torch.nn.Module]:
        """The denoisers that are quantized, by component: one, or several that share the budget."""
        return denoisers_named(self.pipeline, self.settings.component)

    @cached_property
    def denoiser(self) -> torch.nn.Module:
        """The denoiser; of several, a module that holds them by component."""
        (first, *others) = self.denoisers.values()
        return JoinedDenoisers(self.denoisers) if others else first

    @cached_property
    def parts(self) -> list[DenoiserPart]:
        """Each denoiser by itself."""
        return parts_of(self.denoisers, self.graph, self.candidates.layers, bool(self.settings.several))

    @cached_property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The denoiser's weight layers by name."""
        return weight_modules(self.denoiser)

    @cached_property
    def graph(self) -> Graph:
        """The graph, read from graph.json or traced from a real call of the denoiser."""
        path = self.folder / "graph.json"
        if path.exists():
            return Graph.load(path)
        generator = Generator(self.pipeline, self.generation)
        compute = self.settings.offload == "none"  # what is offloaded would take long on the CPU: shapes do
        own = self.settings.target is None  # other formats have neither parts of layers nor copies of them
        graph = traced(generator, self.denoisers, bool(self.settings.several), self.without_offload(), compute, own)
        graph.save(path)
        return graph

    @cached_property
    def copies(self) -> dict[str, tuple[str, ...]]:
        """Module → other modules with the same weights, which get the same option."""
        layers = (self.graph.layers[name] for name in self.candidates.layers)
        return {layer.module: layer.copies for layer in layers if layer.copies}

    def names_of(self, layer: str) -> list[str]:
        """The names of a layer that patterns are matched with: its module and the module's copies."""
        return [self.graph.layers[layer].module, *self.graph.layers[layer].copies]

    def weight(self, layer: str) -> torch.Tensor:
        """The 16-bit weight of a layer or part, to be quantized.

        Read from the checkpoint's files, without loading the model, if the model is a folder; else from the denoiser.
        """
        unit = self.graph.layers[layer]
        name = f"{unit.module}.weight"
        if self._checkpoint is not None and name in self._checkpoint:
            whole = stored_weight(self._checkpoint(name))
            return whole if unit.span is None else whole[:, unit.span[0] : unit.span[1]].contiguous()
        return self.live_weight(layer)

    def live_weight(self, layer: str) -> torch.Tensor:
        """The 16-bit weight of a layer or part of the denoiser in memory, which maps no file."""
        return stored_weight(unit_weight(self.modules, self.graph.layers[layer]))

    def original_weights(self) -> Source | None:
        """Reads original weights from the denoiser's files, if there are any."""
        return checkpoint_source(self._checkpoint or files_of(self.denoiser), self.graph.layers)

    @cached_property
    def _checkpoint(self) -> Checkpoint | None:
        if self._given is not None:
            return None
        return checkpoint_of(self.settings.model, self.settings.component, self.settings.loading)

    @cached_property
    def candidates(self) -> SearchSpace:
        """The layers to quantize, without those kept in 16 bits, and the options that are tried; needs no bank."""
        layers = self.graph.layers
        kept: set[str] = set()
        for pattern in self.settings.keep:
            found = matching(pattern, {name: (name, *self.names_of(name)) for name in layers})
            if not found:
                raise Qua2SeDiMoError(f"keep: no layer matches '{pattern}'", "See `qua2sedimo inspect MODEL`.")
            kept |= {layers[name].module for name in found}  # the parts of a layer are kept together
        shapes = {name: layer.shape for name, layer in layers.items() if layer.module not in kept}
        if not shapes:
            raise Qua2SeDiMoError("keep: no layer is left to quantize", "Keep fewer layers.")
        if self.settings.target is not None:
            shapes = {name: shape for name, shape in shapes.items() if layers[name].module not in self._unheld}
            dtype = self.weight(next(iter(shapes))).dtype
            return space_for(self.settings.target, shapes, self.settings.options, dtype)
        return SearchSpace.of(shapes, self.settings.options)

    @cached_property
    def _unheld(self) -> set[str]:
        """Modules that the format of the study's target cannot hold quantized, whatever their option."""
        target, several = self.settings.target, self.settings.several
        return {
            f"{component}.{name}" if several else name
            for component, denoiser in self.denoisers.items()
            for name in (kept_for(target, denoiser) if target is not None else ())
        }

    @property
    def generation(self) -> Generation:
        """What to generate; the number of images per call is :attr:`batch`."""
        return Generation(self.settings.inputs, self.settings.arguments, self.settings.seed)
