"""The segments of a denoiser: disjoint modules, one run after the other, that a forward can be cut into."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from qua2sedimo.denoisers.layers import WEIGHT_MODULES
from qua2sedimo.denoisers.offload import execution_device
from qua2sedimo.statistics import RecordedCall

#: Kept outputs of finished modules, one for each time that a forward runs the module.
Outputs = dict[str, list[Any]]


@dataclass(frozen=True)
class Unread:
    """In place of an output that no later module reads: tensors of its shape, with any values, serve as well."""

    shape: torch.Size
    dtype: torch.dtype


def unread(outputs: list[Any]) -> list[Any]:
    """Outputs whose tensors are no longer kept."""
    return pytree.tree_map(lambda leaf: Unread(leaf.shape, leaf.dtype) if torch.is_tensor(leaf) else leaf, outputs)


def segment_of(name: str, denoiser: nn.Module) -> str:
    """The segment of a weight module: the outermost module around it that contains no repeated block.

    A repeated block is an element of a :class:`torch.nn.ModuleList` with at least two weight layers. So a segment is a
    whole transformer block, a ResNet of a U-Net, or a module outside of all blocks, such as a time embedding.
    """
    parts = name.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        module = denoiser.get_submodule(path)
        if not isinstance(module, nn.ModuleList) and not _contains_blocks(module):
            return path
    return name


def _contains_blocks(module: nn.Module) -> bool:
    return any(
        sum(isinstance(m, WEIGHT_MODULES) for m in element.modules()) > 1
        for inner in module.modules()
        if isinstance(inner, nn.ModuleList)
        for element in inner
    )


def step_of(name: str, segment: str) -> str:
    """The step of a weight module within its segment: the direct child of the segment around it, or the segment."""
    if name == segment:
        return segment
    return f"{segment}.{name.removeprefix(f'{segment}.').split('.')[0]}"


class Stop(Exception):
    """Ends a forward whose rest is not needed."""


class Replay:
    """Runs recorded calls of a denoiser module by module: finished modules return their outputs of before.

    So a pass over one module costs no more than this module. Outputs are kept by the caller.
    """

    def __init__(self, denoiser: nn.Module, modules: Iterable[str], call: RecordedCall) -> None:
        """``modules`` that ``call`` does not run are dropped."""
        self._denoiser = denoiser
        self._device = execution_device(denoiser)
        #: Module → how often a forward runs it, in the order in which modules begin.
        self.times: dict[str, int] = {}
        #: Module → bytes of its outputs.
        self.nbytes: dict[str, int] = {}
        handles = []
        for name in dict.fromkeys(modules):
            module = denoiser.get_submodule(name)
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._begun(name)))
            handles.append(module.register_forward_hook(lambda m, a, output, name=name: self._ended(name, output)))
        try:
            call.run(denoiser)
        finally:
            for handle in handles:
                handle.remove()
        self._outputs: Outputs = {}
        self._called: dict[str, int] = {}
        self._stubbed: dict[str, Any] = {}  # module → the forward that hooks of others gave it, None without any

    def _begun(self, name: str) -> None:
        self.times[name] = self.times.get(name, 0) + 1

    def _ended(self, name: str, output: Any) -> None:
        tensors = [t for t in pytree.tree_leaves(output) if torch.is_tensor(t)]
        self.nbytes[name] = self.nbytes.get(name, 0) + sum(t.numel() * t.element_size() for t in tensors)

    def run(self, call: RecordedCall, outputs: Outputs, module: str) -> list[Any]:
        """The outputs of ``module``, one for each time it runs, given the ``outputs`` of finished ones.

        Empty if a hook raised :class:`Stop` before.
        """
        found: list[Any] = []

        def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.append(_on_cpu(output))
            if len(found) == self.times[module]:
                raise Stop

        self._outputs, self._called = outputs, {}
        handle = self._denoiser.get_submodule(module).register_forward_hook(keep)
        try:
            call.run(self._denoiser, self._device)
        except Stop:
            pass
        finally:
            handle.remove()
        return found if len(found) == self.times[module] else []

    def finish(self, module: str) -> None:
        """From now on the module is not computed: it returns its kept outputs."""

        def stub(*args: Any, **kwargs: Any) -> Any:
            number = self._called.get(module, 0)
            self._called[module] = number + 1
            return pytree.tree_map(self._given, self._outputs[module][number])

        own = vars(self._denoiser.get_submodule(module))
        self._stubbed[module] = own.get("forward")
        own["forward"] = stub

    def _given(self, leaf: Any) -> Any:
        if isinstance(leaf, Unread):
            floating = leaf.dtype.is_floating_point
            return torch.full(leaf.shape, math.nan if floating else 0, dtype=leaf.dtype, device=self._device)
        return leaf.to(self._device) if torch.is_tensor(leaf) else leaf

    def readers(self, call: RecordedCall, segments: Sequence[str]) -> dict[str, set[str]]:
        """The segments that read the output of each segment, not counting those that read what another computes of it.

        Found by making one segment's output NaN, and those of all others what they are: who sees NaN reads it. Nothing
        is computed meanwhile but what lies between segments. An output without floating-point numbers, or one that
        cannot be NaN, counts as read by all.
        """
        kept: Outputs = {name: [] for name in segments}
        self._watch(kept, lambda name, _, output: kept[name].append(_on_cpu(output)), call)
        found: dict[str, set[str]] = {}
        for name in segments:
            self.finish(name)
        try:
            for name in segments:
                seen: set[str] = set()
                self._outputs, self._called = {**kept, name: unread(kept[name])}, {}
                try:
                    self._watch(segments, lambda other, inputs, _, seen=seen: _add_if_nan(seen, other, inputs), call)  # type: ignore[misc]
                except (RuntimeError, ValueError, TypeError, LookupError):
                    seen |= set(segments)
                floating = any(_is_floating(leaf) for leaf in pytree.tree_leaves(kept[name]))
                found[name] = seen if floating else set(segments)
        finally:
            self.release()
        return found

    def _watch(self, names: Iterable[str], see: Callable[[str, Any, Any], object], call: RecordedCall) -> None:
        """Run the call; ``see`` gets the name, inputs and output of each of these modules."""
        handles = [
            self._denoiser.get_submodule(name).register_forward_hook(
                lambda _, args, kwargs, output, name=name: see(name, (args, kwargs), output) and None, with_kwargs=True
            )
            for name in names
        ]
        try:
            call.run(self._denoiser, self._device)
        finally:
            for handle in handles:
                handle.remove()

    def release(self, modules: Iterable[str] | None = None) -> None:
        """These modules, by default all, compute again."""
        for module in list(self._stubbed if modules is None else modules):
            before, own = self._stubbed.pop(module), vars(self._denoiser.get_submodule(module))
            del own["forward"]
            if before is not None:
                own["forward"] = before


def _on_cpu(output: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().cpu() if torch.is_tensor(leaf) else leaf, output)


def _is_floating(leaf: Any) -> bool:
    return torch.is_tensor(leaf) and leaf.is_floating_point()


def _add_if_nan(found: set[str], name: str, inputs: Any) -> None:
    """Add the name if any number of the inputs is NaN."""
    if any(_is_floating(leaf) and bool(leaf.isnan().any()) for leaf in pytree.tree_leaves(inputs)):
        found.add(name)
