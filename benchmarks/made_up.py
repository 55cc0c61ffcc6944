"""A denoiser that is known by its configuration alone, with errors that are made up: enough to time the predictor."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qua2sedimo.denoisers import Graph, architecture, built_inputs, trace
from qua2sedimo.options import SearchSpace
from qua2sedimo.predictor import Encoding

CONFIG = Path(__file__).parent.parent / "tests" / "denoisers" / "configs" / "pixart-alpha-512.json"


@dataclass(frozen=True)
class MadeUp:
    graph: Graph
    space: SearchSpace
    bank: Any
    encoding: Encoding
    chance: np.random.Generator

    @classmethod
    def of(cls, config: Path, options: str) -> MadeUp:
        """Traced from the configuration; errors fall by a factor of four a bit, and differ by one of four at random."""
        model = architecture(config)
        graph = trace(model, (), built_inputs(model), parts=True)
        space = SearchSpace.of({name: layer.shape for name, layer in graph.layers.items()}, options)
        chance = np.random.default_rng(0)
        errors = {
            n: {o: SimpleNamespace(relative=4.0**-o.bits * chance.uniform(0.5, 2)) for o in space.options[n]}
            for n in space.layers
        }
        bank: Any = SimpleNamespace(errors=errors, costs=lambda: None)
        return cls(graph, space, bank, Encoding(graph, space, bank), chance)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Takes the configuration of a denoiser."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("config", nargs="?", type=Path, default=CONFIG, help="config.json of a denoiser (a PixArt-XL)")
    return made
