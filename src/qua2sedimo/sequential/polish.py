"""Sequential asymmetric rounding (Li et al. 2025, "GPTAQ") of a whole denoiser under a configuration.

With x what a layer sees in full precision, and x_q what it sees behind quantized predecessors, C = E[x x_qᵀ] and
H_q = E[x_q x_qᵀ], the weight that makes up for their errors is W′ = W·(C + λ)·(H_q + λ)⁻¹. It is rounded
with compensation under H_q. Layers are taken in the order in which they run, those of one source together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers import Graph
from qua2sedimo.options import Option
from qua2sedimo.quantizers import METHODS, Moment, QuantizedWeight
from qua2sedimo.sequential.segments import Outputs, Replay, Stop, segment_of, step_of, unread
from qua2sedimo.statistics import RecordedCall, RecordedCalls, Source, unit_columns
from qua2sedimo.statistics.columns import input_of
from qua2sedimo.system.memory import return_memory

#: Positions of a source, over all calls: for each of its inputs, the fewest, and the most.
_ROWS_EACH, _LEAST_ROWS, _ROWS = 16, 1 << 14, 1 << 16
_NUMBERS = 1 << 27  # numbers of a source's inputs in full precision that are kept: half a gigabyte

#: λ as a share of the mean diagonal of H_q: the more, the closer the target stays to W.
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_TELLING = 256  # rows of a weight, at most, by which λ is chosen
#: Rows of inputs [positions, n], and the number of the sample of each.
_Rows = tuple[torch.Tensor, torch.Tensor]

#: Writes a unit's quantized weight into the live denoiser, or its original weight for None.
Write = Callable[[str, QuantizedWeight | None], None]


def polished(
    denoiser: nn.Module, graph: Graph, sources: Sequence[Source], sample: str, calls: Sequence[RecordedCall],
    configuration: Mapping[str, Option], values: Mapping[str, QuantizedWeight], weight: Callable[[str], torch.Tensor],
    write: Write, memory: int, progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, QuantizedWeight]:  # fmt: skip
    """The units of ``values`` quantized again, in sequence; those that see only time step or text are left out:
    they were observed with more of these than the calls have.

    ``weight(unit)`` gives the original weight [channels, …]. As many calls are used as have room in ``memory`` bytes
    for the outputs of segments that later ones read, at least one. The denoiser's weights are written by ``write``, and
    are those of the result at the end.
    """
    with torch.no_grad():
        return _Polish(denoiser, graph, sources, sample, calls, configuration, values, weight, write, memory).run(
            progress
        )


class _Polish:
    def __init__(
        self, denoiser: nn.Module, graph: Graph, sources: Sequence[Source], sample: str, calls: Sequence[RecordedCall],
        configuration: Mapping[str, Option], values: Mapping[str, QuantizedWeight],
        weight: Callable[[str], torch.Tensor], write: Write, memory: int,
    ) -> None:  # fmt: skip
        self._denoiser, self._graph, self._sample = denoiser, graph, sample
        self._configuration, self._weight, self._write = configuration, weight, write
        self._values = dict(values)
        self._sources = [s for s in sources if any(unit in values for unit in s.units)]
        for unit in values:
            write(unit, None)
        self._place(calls[0])
        self._readers = self._replay.readers(calls[0], list(self._steps))
        self._calls = self._affordable(calls, memory)
        self._full: list[Outputs] = [{} for _ in self._calls]
        self._quantized: list[Outputs] = [{} for _ in self._calls]
        self._done: set[str] = set()
        self._finished: set[str] = set()

    def _place(self, call: RecordedCall) -> None:
        """Segments, their steps, and the units in each step, in the order in which they begin."""
        modules: dict[str, list[str]] = {}
        for unit in self._values:
            layer = self._graph.layers[unit]
            for name in (layer.module, *layer.copies):
                modules.setdefault(name, []).append(unit)
        segments = {name: segment_of(name, self._denoiser) for name in modules}
        steps = {name: step_of(name, segment) for name, segment in segments.items()}
        self._replay = Replay(self._denoiser, [*segments.values(), *steps.values()], call)
        order = list(self._replay.times)
        self._steps: dict[str, list[str]] = {name: [] for name in order if name in set(segments.values())}
        self._inside: dict[str, list[str]] = {}
        for name, units in modules.items():
            segment = segments[name]
            step = steps[name] if steps[name] in self._replay.times else segment  # not every child is called itself
            if segment in self._steps:
                self._inside.setdefault(step, []).extend(units)
                if step not in self._steps[segment]:
                    self._steps[segment].append(step)
        for of in self._steps.values():
            of.sort(key=order.index)

    def run(self, progress: Callable[[int, int], object]) -> dict[str, QuantizedWeight]:
        found: dict[str, QuantizedWeight] = {}
        try:
            for number, (segment, steps) in enumerate(self._steps.items()):
                for step in steps:
                    found |= self._step(step)
                    return_memory()
                if steps != [segment]:
                    self._merge(segment, steps)
                self._drop_unread(segment)
                progress(number + 1, len(self._steps))
        finally:
            self._replay.release()
        for unit, value in self._values.items():
            self._write(unit, value)
        return found

    def _merge(self, segment: str, steps: Sequence[str]) -> None:
        """Keep the outputs of a whole segment in place of those of its steps, which take more memory."""
        for outputs in (self._full, self._quantized):
            for call, kept in zip(self._calls, outputs):
                if segment not in kept:
                    kept[segment] = self._replay.run(call, kept, segment)
        inner = [step for step in steps if step != segment]
        self._replay.release(inner)
        for kept in (*self._full, *self._quantized):
            for step in inner:
                del kept[step]
        if segment not in steps:
            self._replay.finish(segment)

    def _drop_unread(self, finished: str) -> None:
        """Keep no outputs that only finished segments read."""
        self._finished.add(finished)
        for name in [name for name in self._finished if self._readers[name] <= self._finished]:
            for outputs in (*self._full, *self._quantized):
                outputs[name] = unread(outputs[name])

    def _affordable(self, calls: Sequence[RecordedCall], memory: int) -> list[RecordedCall]:
        """Some of the calls, as many as have room for outputs in full precision and quantized."""
        sizes, order, most = self._replay.nbytes, list(self._steps), 0
        for place, (segment, steps) in enumerate(self._steps.items()):
            read = [name for name in order[:place] if self._readers[name] & set(order[place:])]
            most = max(most, sum(sizes.get(name, 0) for name in {*read, *steps, segment}))
        each = 2 * most
        count = min(len(calls), max(1, memory // max(1, each)))
        return list(calls.some(count) if isinstance(calls, RecordedCalls) else calls[:count])

    def _step(self, step: str) -> dict[str, QuantizedWeight]:
        """Quantize the units of one step; its outputs are then kept."""
        inside = list(dict.fromkeys(self._inside[step]))
        groups = self._groups(step, inside)
        for unit in inside:
            self._write(unit, None)
        seen = self._observe_full(step, groups)
        for unit in inside:
            self._write(unit, self._values[unit])
        found: dict[str, QuantizedWeight] = {}
        for group, columns in zip(groups, seen):
            if not columns:
                continue
            pair = self._observe_quantized(step, group, columns)
            moment = pair.moment()
            targets = pair.targets([self._weight(unit) for unit in group])
            for unit, target in zip(group, targets):
                option = self._configuration[unit]
                (value,) = METHODS[option.method].quantize(target, [option.number], moment)
                found[unit] = self._values[unit] = value
                self._write(unit, value)
            self._done |= set(group)
        for i, call in enumerate(self._calls):
            self._quantized[i][step] = self._replay.run(call, self._quantized[i], step)
        self._replay.finish(step)
        return found

    def _groups(self, step: str, inside: Sequence[str]) -> list[list[str]]:
        """Units of the step that are quantized here, by source, in the order in which their modules are called."""
        order: list[str] = []
        names = {self._graph.layers[unit].module for unit in inside}
        handles = [
            self._denoiser.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(name))
            for name in names
        ]
        try:
            self._replay.run(self._calls[0], self._full[0], step)
        finally:
            for handle in handles:
                handle.remove()
        place = {name: i for i, name in reversed(list(enumerate(order)))}
        wanted = {u for u in inside if self._graph.layers[u].module in place and u not in self._done}
        groups = [
            [u for u in source.units if u in wanted] for source in self._sources if source.sees_sample(self._sample)
        ]
        return sorted((g for g in groups if g), key=lambda g: min(place[self._graph.layers[u].module] for u in g))

    def _observe_full(self, step: str, groups: Sequence[Sequence[str]]) -> list[list[_Rows]]:
        """What each group sees in full precision, rows per call; and the step's outputs are kept."""
        seen: list[list[_Rows]] = [[] for _ in groups]
        for i, call in enumerate(self._calls):
            rows: list[list[_Rows]] = [[] for _ in groups]
            handles = [
                self._module(group).register_forward_pre_hook(self._columns(group, i, into), with_kwargs=True)
                for group, into in zip(groups, rows)
            ]
            try:
                self._full[i][step] = self._replay.run(call, self._full[i], step)
            finally:
                for handle in handles:
                    handle.remove()
            for kept, found in zip(seen, rows):
                if found:
                    kept.append(_joined(found))
        return seen

    def _observe_quantized(self, step: str, group: Sequence[str], full: Sequence[_Rows]) -> _Pair:
        """H_q and C of a group behind quantized predecessors, at the positions of ``full``."""
        source = next(s for s in self._sources if group[0] in s.units)
        pair = _Pair(source.blocks)
        for i, (call, rows) in enumerate(zip(self._calls, full)):
            found: list[_Rows] = []
            hook = self._columns(group, i, found, stop=True)
            handle = self._module(group).register_forward_pre_hook(hook, with_kwargs=True)
            try:
                self._replay.run(call, self._quantized[i], step)
            finally:
                handle.remove()
            pair.add(rows, _joined(found))
        return pair

    def _columns(self, group: Sequence[str], number: int, into: list[_Rows], stop: bool = False) -> Callable[..., None]:
        """A hook that keeps the group's inputs at positions that depend on group and call alone."""
        unit = self._graph.layers[group[0]]
        inputs = math.prod(unit.shape[1:])
        rows = min(_ROWS, max(_LEAST_ROWS, _ROWS_EACH * inputs), _NUMBERS // max(1, inputs))
        most = max(64, rows // len(self._calls))
        times = self._times(unit.module)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            chance = torch.Generator().manual_seed(1 + number + 1000 * len(into))
            x = input_of(args, kwargs)
            rows, samples = unit_columns(module, unit, x, most, chance)
            into.append((rows.to(x.dtype).cpu(), samples))  # in fp32 they take twice as much, and are the same
            if stop and len(into) == times:
                raise Stop

        return hook

    def _times(self, module: str) -> int:
        """How often a forward calls a weight module: as often as its step, as far as is known."""
        segment = segment_of(module, self._denoiser)
        return self._replay.times.get(step_of(module, segment), self._replay.times.get(segment, 1))

    def _module(self, group: Sequence[str]) -> nn.Module:
        return self._denoiser.get_submodule(self._graph.layers[group[0]].module)


def _joined(found: Sequence[_Rows]) -> _Rows:
    return torch.cat([rows for rows, _ in found]), torch.cat([samples for _, samples in found])


class _Pair:
    """H_q and C of one source, in blocks, of samples with even and of samples with odd numbers."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self._sums = [[torch.zeros(2, n, n) for n in blocks] for _ in range(2)]  # of each half: H_q and C
        self._rows = [0, 0]

    def add(self, full: _Rows, quantized: _Rows) -> None:
        """Rows of full precision and of the quantized denoiser at the same positions."""
        for half, sums in enumerate(self._sums):
            chosen = full[1] % 2 == half
            x, x_q = full[0][chosen].float(), quantized[0][chosen].float()
            at = 0
            for both in sums:
                a, b = x[:, at : at + both.shape[1]], x_q[:, at : at + both.shape[1]]
                both[0] += b.T @ b
                both[1] += a.T @ b
                at += both.shape[1]
            self._rows[half] += len(x)

    def means(self, *halves: int) -> list[torch.Tensor]:
        """(H_q, C) of each block [2, n, n], over these halves."""
        count = max(1, sum(self._rows[half] for half in halves))
        return [sum(self._sums[half][i] for half in halves) / count for i in range(len(self._sums[0]))]  # type: ignore[misc]

    def moment(self) -> Moment:
        return Moment(tuple(both[0] for both in self.means(0, 1)))

    def targets(self, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """W·(C + λ)·(H_q + λ)⁻¹ of every unit, in its shape and dtype; W itself where that is not finite.

        λ is chosen for each unit by how well a target from one half of the samples serves the other half.
        """
        rows = [w.reshape(len(w), -1) for w in weights]
        ridges = self._ridges([some.float()[:: -(-len(some) // _TELLING)] for some in rows])
        found: list[torch.Tensor] = list(weights)
        means = self.means(0, 1)
        for ridge in set(ridges):
            solve = _Solver(means, ridge)
            for i in (i for i, own in enumerate(ridges) if own == ridge):
                target = solve(rows[i].double()).reshape(weights[i].shape).to(weights[i].dtype)
                if bool(torch.isfinite(target).all()):
                    found[i] = target
        return found

    def _ridges(self, rows: Sequence[torch.Tensor]) -> list[float]:
        """λ of every unit, of which some rows fp32 [rows, n] tell, by how well a target from one half of the samples
        serves the other."""
        if min(self._rows) == 0:
            return [_RIDGES[-1]] * len(rows)
        losses = [[0.0] * len(_RIDGES) for _ in rows]
        for half in (0, 1):
            own, other = self.means(half), self.means(1 - half)
            for place, ridge in enumerate(_RIDGES):
                solve = _Solver(own, ridge, torch.float32)
                for loss, w in zip(losses, rows):
                    loss[place] += _loss(w, solve(w), other)
        return [_RIDGES[loss.index(min(loss))] for loss in losses]


def _loss(rows: torch.Tensor, target: torch.Tensor, means: Sequence[torch.Tensor]) -> float:
    """Squared error of a target's outputs, but for a constant, under (H_q, C) of each block."""
    loss, at = 0.0, 0
    for both in means:
        n = both.shape[1]
        w, t = rows[:, at : at + n].float(), target[:, at : at + n].float()
        loss += float(torch.sum((t @ both[0] - 2 * (w @ both[1])) * t, dtype=torch.float64))
        at += n
    return loss


class _Solver:
    """W·(C + λ)·(H_q + λ)⁻¹ with λ = ``ridge`` times the mean diagonal of H_q, block by block."""

    def __init__(self, means: Sequence[torch.Tensor], ridge: float, dtype: torch.dtype = torch.float64) -> None:
        self._blocks = [_factored(both.to(dtype), ridge) for both in means]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Targets of ``rows`` [rows, n]: the rows themselves where all inputs are zero."""
        parts, at = [], 0
        for cross, factor, added in self._blocks:
            w = rows[:, at : at + len(cross)]
            if factor is not None:
                w = torch.cholesky_solve((w @ cross + added * w).T, factor).T
            parts.append(w)
            at += len(cross)
        return torch.cat(parts, dim=1)


def _factored(both: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """(C, Cholesky factor of H_q + λ, λ) of one block; no factor of a matrix that is not positive definite."""
    moment, cross = both[0], both[1]
    added = ridge * float(moment.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(moment + added * torch.eye(len(moment), dtype=moment.dtype))
    return cross, None if int(failed) else factor, added
