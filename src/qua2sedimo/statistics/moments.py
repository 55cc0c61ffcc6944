"""Second moments of what layers see, from recorded calls of the denoiser run again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qua2sedimo.denoisers import Graph, WeightLayer
from qua2sedimo.quantizers import Moment
from qua2sedimo.statistics.calls import RecordedCall
from qua2sedimo.statistics.columns import input_of, unit_columns
from qua2sedimo.statistics.sources import Source

#: Positions of a source that one call adds, at most.
POSITIONS = 4096
#: Time steps, evenly spaced over the whole schedule, that layers which see only the time are observed at.
_TIMES = 64
#: Calls that they are spread over, so that they meet several prompts or classes.
_TIMED = 8
#: Rows of a sum of products that are computed at a time, each up to the diagonal.
_STRIP = 512


class _Sum:
    """Sum of x·xᵀ of a source, in blocks, and the number of its rows.

    On a CPU the products are added where the sum is, and only those on and left of the diagonal.
    """

    def __init__(self, source: Source) -> None:
        self.sums = [torch.zeros(size, size) for size in source.blocks]
        self.rows = 0

    def add(self, rows: torch.Tensor) -> None:
        at = 0
        for total in self.sums:
            part = rows[:, at : at + len(total)]
            if part.device == total.device:
                for a in range(0, len(total), _STRIP):
                    strip = total[a : a + _STRIP, : a + _STRIP]
                    strip.addmm_(part[:, a : a + _STRIP].T, part[:, : a + _STRIP])
            else:
                total += (part.T @ part).to(total.device)
            at += len(total)
        self.rows += len(rows)

    def moment(self) -> Moment:
        """The mean, in the memory of the sum, which is gone: all together they are most of what observing takes."""
        for total in self.sums:
            for a in range(0, len(total), _STRIP):
                total[:a, a : a + _STRIP] = total[a : a + _STRIP, :a].T
        return Moment(tuple(total.div_(max(1, self.rows)) for total in self.sums))


def observe_moments(
    denoiser: nn.Module, graph: Graph, sources: Sequence[Source], calls: Sequence[RecordedCall], sample: str,
    steps: int | None, seed: int, texts: Sequence[RecordedCall] = (),
    progress: Callable[[int], object] = lambda done: None,
) -> list[tuple[Moment, int]]:  # fmt: skip
    """(moment, observed positions) of each source.

    Padded text is left out. Of sources that see only the time, half of the weight is on ``steps`` time steps of the
    whole schedule (None: unknown, only those of the calls); of those that see only the condition, half is on ``texts``,
    calls with other prompts. For these two the denoiser is run no further than the last of their layers. The moment of
    a source does not depend on which others are observed with it.
    """
    found = [_Sum(source) for source in sources]
    with torch.no_grad():
        for done, call in enumerate(calls, start=1):
            with _adding(denoiser, graph, sources, found, call, sample, f"{seed} {done}"):
                call.run(denoiser)
            progress(done)
        moments = [(total.moment(), total.rows) for total in found]
        elsewhere = [
            ([i for i, s in enumerate(sources) if s.only_time(sample)],
             lambda: over_all_times([*texts, *calls], steps) if steps is not None else []),
            ([i for i, s in enumerate(sources) if s.only_condition(sample)], lambda: texts),
        ]  # fmt: skip
        for places, other_calls in elsewhere:
            if not places:
                continue
            seeing = [sources[i] for i in places]
            totals = [_Sum(source) for source in seeing]
            times: int | None = None  # that layers of these sources are called in one call of the denoiser
            for number, call in enumerate(other_calls()):
                adding = _adding(denoiser, graph, seeing, totals, call, sample, f"{seed} elsewhere {number}", times)
                with adding, suppress(_Enough):
                    call.run(denoiser)
                times = adding.times
            for i, total in zip(places, totals):
                if total.rows:
                    blocks = [a.add_(b).div_(2) for a, b in zip(moments[i][0].blocks, total.moment().blocks)]
                    moments[i] = Moment(tuple(blocks)), moments[i][1] + total.rows
    return moments


def over_all_times(calls: Sequence[RecordedCall], steps: int) -> list[RecordedCall]:
    """Calls like the recorded ones at :data:`_TIMES` time steps from 0 to ``steps`` − 1, or more where that takes fewer
    than :data:`_TIMED` calls; as many steps in one call as it has times. The same fraction of 1 where a pipeline counts
    time from 0 to 1."""
    name = _time_name(calls[0])
    if name is None:
        return []
    calls = [call for call in calls if _samples(call) == _samples(calls[0])]  # every time counts the same
    recorded = [torch.as_tensor(call.named()[name]) for call in calls]
    top = steps - 1 if max(float(t.max()) for t in recorded) > 1.5 else 1.0
    count = max(_TIMES, min(_TIMED, len(calls)) * recorded[0].numel())
    wanted = torch.linspace(0, top, count, dtype=torch.float64)
    wanted = wanted[torch.randperm(count, generator=torch.Generator().manual_seed(0))]  # each call sees all of them
    found: list[RecordedCall] = []
    at = 0
    while at < len(wanted):
        call = calls[len(found) % len(calls)]
        before = torch.as_tensor(call.named()[name])
        times = wanted[(at + torch.arange(max(1, before.numel()))).clamp(max=len(wanted) - 1)]
        times = times if before.is_floating_point() else times.round()
        found.append(_with(call, name, times.to(before.dtype).reshape(before.shape)))
        at += max(1, before.numel())
    return found


def _time_name(call: RecordedCall) -> str | None:
    named = call.named()
    if "timestep" in named:
        return "timestep"
    # U-Nets are called with (sample, timestep, …).
    second = named.get("1")
    known = isinstance(second, (torch.Tensor, int, float)) and torch.as_tensor(second).dim() <= 1
    return "1" if known else None


def _samples(call: RecordedCall) -> int:
    return next((len(value) for value in call.named().values() if torch.is_tensor(value) and value.dim() > 1), 0)


def _with(call: RecordedCall, name: str, value: torch.Tensor) -> RecordedCall:
    if name.isdigit():
        args = list(call.args)
        args[int(name)] = value
        return replace(call, args=tuple(args))
    return replace(call, kwargs={**call.kwargs, name: value})


def text_mask(call: RecordedCall, sample: str) -> torch.Tensor | None:
    """Which tokens of the text are no padding: bool [batch, tokens]; None if the denoiser is not told, or the text
    encoder, which has no noisy ``sample``."""
    for name, value in call.kwargs.items():
        of_text = "encoder" in name or "text" in name or (name == "attention_mask" and not sample)
        if "mask" in name and of_text and torch.is_tensor(value) and value.dim() == 2:
            return value.bool() if bool(((value == 0) | (value == 1)).all()) else value > -1
    return None


class _Enough(Exception):
    """All layers that are observed were called; the rest of the denoiser need not run."""


class _adding:
    """Within, every call of a source's first unit (or of its copies) adds its inputs to the source's sum.

    ``seed`` and the source's name determine which positions are drawn. ``times`` counts these calls; after ``most`` of
    them, :class:`_Enough` is raised.
    """

    def __init__(
        self, denoiser: nn.Module, graph: Graph, sources: Sequence[Source], sums: Sequence[_Sum], call: RecordedCall,
        sample: str, seed: str, most: int | None = None,
    ) -> None:  # fmt: skip
        self._stack, self._most, self.times = ExitStack(), most, 0
        mask = text_mask(call, sample)
        for source, total in zip(sources, sums):
            unit = graph.layers[source.name]
            chance = torch.Generator().manual_seed(zlib.crc32(f"{seed} {source.name}".encode()))
            keep = mask if source.only_condition(sample) else None
            for name in (unit.module, *unit.copies):
                hook = self._hook(unit, total, keep, chance)
                handle = denoiser.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
                self._stack.callback(handle.remove)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _hook(
        self, unit: WeightLayer, total: _Sum, mask: torch.Tensor | None, chance: torch.Generator
    ) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            keep = mask if mask is not None and tuple(x.shape[:-1]) == tuple(mask.shape) else None
            total.add(unit_columns(module, unit, x, POSITIONS, chance, keep)[0])
            self.times += 1
            if self.times == self._most:
                raise _Enough

        return hook
