"""Weighing: what every option of a bank changes in the output.

By the gradients of the layers' own weights; where a denoiser has no backward pass, or it does not fit into memory, by
running calls with one layer changed at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers.components import is_encoder
from qua2sedimo.option_changes import LayerChanges
from qua2sedimo.options import Option
from qua2sedimo.quantizers import QuantizedWeight, inner_product
from qua2sedimo.statistics import JoinedStatistics, OutputDifference, RecordedCalls, Statistics, output_changes
from qua2sedimo.study.parts import LARGE, DenoiserPart
from qua2sedimo.system.elsewhere import Elsewhere
from qua2sedimo.system.progress import Progress

#: Calls with a backward pass. A mean of this many squares of normal numbers has a relative standard error of 0.18; of
#: half as many, 0.25, which costs no quality that can be measured (docs/compensation.md), and a large denoiser minutes.
_CALLS, _CALLS_LARGE = 64, 32
#: Calls after which what is known so far is kept.
_KEPT_AFTER = 8
#: Weights at a time whose product is summed up in fp32.
_PART = 1 << 16
#: Without gradients: calls that each layer is changed in, and the bits of the option that it is changed by.
_ONE_BY_ONE, _WIDTH = 4, 3.0
_LAYERS_KEPT_AFTER = 16
_SMALLEST = 1e-12


def weigh(
    bank: Bank, parts: Sequence[DenoiserPart], statistics: Statistics | JoinedStatistics,
    weight: Callable[[str], torch.Tensor], progress: Progress, elsewhere: Elsewhere | None = None,
) -> None:  # fmt: skip
    """Add what gradients say of the options of these denoisers to the bank's changes; interrupted, it goes on with the
    first calls that are missing.

    ``weight(layer)`` gives the 16-bit weight of the live denoiser. The live denoisers hold their original weights. A
    denoiser whose gradients do not fit into memory is left out. ``elsewhere`` does the work if it is given, by
    :func:`weigh_some`.
    """
    known = dict(bank.changes.of)
    chosen = {part.component: _chosen(statistics, part) for part in parts}
    total, before = sum(map(len, chosen.values())), 0
    for part in parts:
        calls, layers = chosen[part.component], [part.prefix + unit for unit in part.units]
        found = {layer: known[layer].values for layer in layers if layer in known and not known[layer].measured}
        begun = [found[layer].shape[1] if layer in found else 0 for layer in layers]
        at = min((n for n in begun if n), default=0)  # a layer that no call reached so far has none
        ranges = [range(low, min(low + _KEPT_AFTER, len(calls))) for low in range(at, len(calls), _KEPT_AFTER)]
        report = _after(progress, before, total)
        every: Iterator[dict[str, torch.Tensor] | None]
        if elsewhere is None:
            every = (weigh_some(bank, part, statistics, weight, some, report) for some in ranges)
        else:
            every = _weighed_elsewhere(part, ranges, report, elsewhere)
        for some, own in zip(ranges, every):
            if own is None:
                found = {}
                break
            for layer in {*own, *(layer for layer in layers if layer in found)}:
                found[layer] = _with_more(found.get(layer), at, own.get(layer), len(some))
            at = some.stop
            known |= {layer: LayerChanges(of, calls.places[:at]) for layer, of in found.items()}
            bank.keep_changes(known, complete=False)
        for layer in layers:
            known.pop(layer, None)
        known |= {layer: LayerChanges(of, calls.places[:at]) for layer, of in found.items()}
        before += len(calls)
    bank.keep_changes(known, complete=False)


def weigh_some(
    bank: Bank, part: DenoiserPart, statistics: Statistics | JoinedStatistics, weight: Callable[[str], torch.Tensor],
    some: range, progress: Callable[[int], object] = lambda done: None,
) -> dict[str, torch.Tensor] | None:  # fmt: skip
    """What options change in some of the calls that are run, by layer: fp32 [options, calls]; None if gradients do not
    fit into memory. ``progress`` gets the number of calls up to the one that was run."""
    products = _Products(bank, weight)
    found = output_changes(
        part.denoiser, {unit: part.graph.layers[unit] for unit in part.units},
        _chosen(statistics, part)[some.start : some.stop],
        lambda unit, gradient: products(part.prefix + unit, gradient), lambda done: progress(some.start + done),
    )  # fmt: skip
    return None if found is None else {part.prefix + unit: of for unit, of in found.items()}


def _weighed_elsewhere(
    part: DenoiserPart, ranges: Sequence[range], progress: Callable[[int], object], elsewhere: Elsewhere
) -> Iterator[dict[str, torch.Tensor] | None]:
    """What others found by :func:`weigh_some`, in the order of the calls; the first ones as soon as they are known."""
    jobs = [{"do": "weigh", "component": part.component, "start": s.start, "stop": s.stop} for s in ranges]
    waiting: dict[int, dict[str, torch.Tensor] | None] = {}
    following, done = 0, ranges[0].start if ranges else 0
    for place, values in elsewhere.each(jobs, "weighing options"):
        waiting[place] = None if values is None else {layer: torch.tensor(of) for layer, of in values.items()}
        done += len(ranges[place])
        progress(done)
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _after(progress: Progress, before: int, total: int) -> Callable[[int], object]:
    return lambda done: progress(before + done, total, "weighing options")


def weigh_one_by_one(
    bank: Bank, parts: Sequence[DenoiserPart], statistics: Statistics | JoinedStatistics,
    write: Callable[[str, QuantizedWeight | None], None], progress: Progress,
) -> None:  # fmt: skip
    """Add what each layer of these denoisers changes in a few calls, of one image each, if it alone is quantized.

    That is measured for its option of about three bits, and scaled for the others by the errors of the layer's output.
    ``write(layer, value)`` puts a quantized weight into the live denoiser, or for None the original. Interrupted, it
    goes on with the first layers that are missing. Text encoders, whose calls say nothing of a picture without
    gradients, are left out.
    """
    known = dict(bank.changes.of)
    parts = [part for part in parts if not is_encoder(part.denoiser)]
    total, done = sum(len(part.units) for part in parts), 0
    for part in parts:
        calls = statistics.part(part.component).calls.some(_ONE_BY_ONE)
        difference: OutputDifference | None = None
        for unit in part.units:
            layer = part.prefix + unit
            if layer not in known:
                difference = difference or OutputDifference(part.denoiser, calls)
                option = bank.near(layer, _WIDTH)
                try:
                    write(layer, bank.get(layer, option))
                    changed = difference()
                finally:
                    write(layer, None)
                known[layer] = LayerChanges(_scaled(bank, layer, option, changed), calls.places, measured=True)
            done += 1
            progress(done, total, "weighing options, layer by layer")
            if done % _LAYERS_KEPT_AFTER == 0:
                bank.keep_changes(known, complete=False)
    bank.keep_changes(known, complete=False)


def _scaled(bank: Bank, layer: str, option: Option, changed: torch.Tensor) -> torch.Tensor:
    """Norms of changes of all options [options, calls], from the squared changes [calls] by one."""
    errors = bank.errors[layer]
    own = max(errors[option].relative, _SMALLEST)
    factors = torch.tensor([errors[o].relative / own for o in bank.space.options[layer]], dtype=torch.float64)
    return torch.outer(factors, changed).sqrt().float()


def _with_more(earlier: torch.Tensor | None, at: int, more: torch.Tensor | None, count: int) -> torch.Tensor:
    """Changes [options, at + count] from those of the first ``at`` calls and of ``count`` more; 0 in calls that do not
    reach the layer."""
    known = earlier if earlier is not None else more
    assert known is not None
    options = known.shape[0]
    first = torch.zeros(options, at) if earlier is None else earlier[:, :at]
    return torch.cat([first, torch.zeros(options, count) if more is None else more], dim=1)


class _Products:
    """What each option of a layer changes, by a gradient of its weight: packed codes times the gradient."""

    def __init__(self, bank: Bank, weight: Callable[[str], torch.Tensor]) -> None:
        self._bank, self._weight = bank, weight

    def __call__(self, layer: str, gradient: torch.Tensor) -> torch.Tensor:
        """⟨G, Ŵ⟩ − ⟨G, W⟩ of its options: fp32 [options]."""
        flat = gradient.reshape(-1)
        own = sum(
            float(g @ w.to(g.device).float())
            for g, w in zip(flat.split(_PART), self._weight(layer).reshape(-1).split(_PART))
        )
        values = (self._bank.get(layer, option) for option in self._bank.space.options[layer])
        found = torch.tensor([inner_product(value, gradient) - own for value in values])
        self._bank.forget(layer)  # all files together are larger than the denoiser
        return found


def _chosen(statistics: Statistics | JoinedStatistics, part: DenoiserPart) -> RecordedCalls:
    """The calls that are run."""
    return statistics.part(part.component).calls.some(
        weighed_calls(sum(part.graph.layers[unit].weights for unit in part.units))
    )


def weighed_calls(weights: int) -> int:
    """The calls that options of a denoiser with so many weights are weighed by, at most."""
    return _CALLS_LARGE if weights >= LARGE else _CALLS
