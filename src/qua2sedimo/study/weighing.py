"""Weighing: what every option of a bank changes in the output, by the gradients of the layers' own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from qua2sedimo.bank import Bank
from qua2sedimo.option_changes import LayerChanges
from qua2sedimo.quantizers import dequantize_weight
from qua2sedimo.statistics import JoinedStatistics, RecordedCalls, Statistics, output_changes
from qua2sedimo.study.parts import DenoiserPart
from qua2sedimo.system.progress import Progress

#: Calls with a backward pass. A mean of this many squares of normal numbers has a relative standard error of 0.18.
WEIGHED_CALLS = 64
#: Bytes of a weight's error, as bf16, for each option; and of its gradient, summed in fp32.
_OF_OPTION, _OF_GRADIENT = 2, 8


def weigh(
    bank: Bank, parts: Sequence[DenoiserPart], statistics: Statistics | JoinedStatistics,
    weight: Callable[[str], torch.Tensor], memory: int, progress: Progress,
) -> None:  # fmt: skip
    """Complete the bank's changes; interrupted, it goes on with the first group of layers that is missing.

    ``weight(layer)`` gives the original 16-bit weight. The live denoisers hold their original weights. ``memory``:
    bytes for gradients and errors at a time. A denoiser whose gradients do not fit into memory is left out.
    """

    def errors(layer: str) -> list[torch.Tensor]:
        original = weight(layer).cpu().float()
        values = (bank.get(layer, option) for option in bank.space.options[layer])
        return [dequantize_weight(value).float().reshape(original.shape) - original for value in values]

    found = dict(bank.changes.of)
    chosen = {part.component: _chosen(statistics, part) for part in parts}
    groups = [(part, group) for part in parts for group in _groups(bank, part, memory)]
    for number, (part, group) in enumerate(groups):
        missing = {unit: part.graph.layers[unit] for unit in group if part.prefix + unit not in found}
        if not missing:
            continue

        def of_unit(unit: str, prefix: str = part.prefix) -> list[torch.Tensor]:
            return errors(prefix + unit)

        def report(done: int, total: int, number: int = number) -> None:
            progress(number * total + done, len(groups) * total, "weighing options")

        calls = chosen[part.component]
        changes = output_changes(part.denoiser, missing, calls, of_unit, report) or {}
        found |= {part.prefix + unit: LayerChanges(of, calls.places) for unit, of in changes.items()}
        bank.keep_changes(found, complete=False)
    bank.keep_changes(found, complete=True)


def _chosen(statistics: Statistics | JoinedStatistics, part: DenoiserPart) -> RecordedCalls:
    """The calls that are run."""
    of_part = statistics.parts[part.component] if isinstance(statistics, JoinedStatistics) else statistics
    return of_part.calls.some(WEIGHED_CALLS)


def _groups(bank: Bank, part: DenoiserPart, memory: int) -> Iterator[list[str]]:
    """The part's units in groups that fit into ``memory`` bytes; a larger unit is alone."""
    group: list[str] = []
    room = memory
    for unit in part.units:
        layer = part.prefix + unit
        nbytes = part.graph.layers[unit].weights * (_OF_OPTION * len(bank.space.options[layer]) + _OF_GRADIENT)
        if group and nbytes > room:
            yield group
            group, room = [], memory
        group.append(unit)
        room -= nbytes
    if group:
        yield group
