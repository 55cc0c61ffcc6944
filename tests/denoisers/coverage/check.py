"""One class from its small configuration through everything: trace, quantize, save packed, load, compare outputs."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tests.conftest import randomized
from tests.denoisers.coverage.configuration import Draw
from tests.denoisers.coverage.registry import CONFIGURATIONS, exported
from torch import nn
from torch.utils._pytree import tree_leaves

from qua2sedimo.denoisers import Graph, trace, unit_weight, weight_modules
from qua2sedimo.denoisers.exact import kept_exact
from qua2sedimo.denoisers.names import OPERATIONS
from qua2sedimo.quantizers import METHODS, dequantize_weight
from qua2sedimo.runtime import save_packed

#: Relative difference of outputs of equal weights: some processors sum in another order where tensors lie otherwise in
#: memory. One weight at another level of four bits makes a thousand times as much.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Checked:
    """What :func:`check` saw: the graph, the modules it should account for, outputs of reference and loaded model."""

    graph: Graph
    modules: tuple[str, ...]
    expected: list[torch.Tensor]
    loaded: list[torch.Tensor]

    @property
    def wrong(self) -> str:
        """What does not hold, in words; empty if all does."""
        nodes = Counter(node.name for node in self.graph.nodes if node.kind == "layer")
        if nodes != Counter(list(self.graph.layers)):
            return "units and nodes differ"
        units = self.graph.layers.values()
        whole = {name for unit in units for name in (unit.module, *unit.copies) if name in self.modules}
        placed = Counter([*whole, *self.graph.bypassed])
        if placed != Counter(self.modules):
            twice, missing = placed - Counter(self.modules), set(self.modules) - set(placed)
            return f"not once in the graph or bypassed: {sorted(twice or missing)}"
        unknown = {unit.operation for unit in units} - OPERATIONS
        if unknown:
            return f"operation types outside the list: {sorted(unknown)}"
        if any(source >= reader for source, reader in self.graph.edges):
            return "an edge goes backwards"
        if not self.expected or len(self.expected) != len(self.loaded):
            return f"{len(self.loaded)} output tensors instead of {len(self.expected)}"
        if not all(torch.isfinite(tensor).all() for tensor in self.expected):
            return "the reference has values that are not finite"
        far = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(self.expected, self.loaded))
        if not far <= _ROUNDING:
            return f"the loaded model's output differs, relatively by up to {far:.1e}"
        return ""


def built(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The small instance of a class with random weights, none zero, and the keywords of one call."""
    entry = CONFIGURATIONS[name]
    model = exported()[name](**entry.arguments)
    return randomized(model, seed=0), entry.inputs(Draw())


def check(name: str, folder: Path) -> Checked:
    """Trace the class, store every traced layer at uaq-4 in ``folder``, load it, and compare what is computed."""
    model, inputs = built(name)
    graph = trace(model, (), inputs, parts=True, ties=True)
    modules = weight_modules(model)
    values = {n: METHODS["uaq"].quantize(unit_weight(modules, unit), [4])[0] for n, unit in graph.layers.items()}
    copies = {unit.module: unit.copies for unit in graph.layers.values() if unit.copies}
    save_packed(model, None, values, folder, copies=copies)
    loaded = type(model).from_pretrained(folder)
    reference = copy.deepcopy(model)
    exact = kept_exact(model)
    with torch.no_grad():
        for key, tensor in reference.state_dict().items():
            if tensor.is_floating_point() and not exact(key):
                tensor.copy_(tensor.half())  # what is not quantized is stored in 16 bits
        places = weight_modules(reference)
        for name_, value in values.items():
            unit = graph.layers[name_]
            for module in (unit.module, *(copy_ for copy_ in unit.copies if copy_ in places)):
                unit_weight(places, replace(unit, module=module)).copy_(dequantize_weight(value))
    return Checked(graph, tuple(modules), outputs(reference, name), outputs(loaded, name))


@torch.no_grad()
def outputs(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The tensors a fresh call gives (inputs may hold a cache, which a call fills)."""
    with torch.compiler.set_stance("force_eager"):  # some compile flex_attention, which takes a second
        output = model(**CONFIGURATIONS[name].inputs(Draw()))
    return [leaf for leaf in tree_leaves(dict(output) if hasattr(output, "keys") else output) if torch.is_tensor(leaf)]
