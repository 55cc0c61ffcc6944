"""Calls of a denoiser while its pipeline generates images: recorded to files, run again later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from qua2sedimo.denoisers.components import as_called
from qua2sedimo.denoisers.offload import execution_device
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json
from qua2sedimo.formats.sealed import load_tensors, save_tensors

_REMEDY = "Move it and statistics/index.json away; `qua2sedimo observe STUDY` makes it again."
_PLAIN = (bool, int, float, str, type(None))
_COMPLEX = "complex."  # begins the names of tensors whose last two entries are real and imaginary part


@dataclass(frozen=True)
class RecordedCall:
    """Arguments of one call, and the ``cotangents`` of its outputs: the gradient, with respect to them, of the guided
    output times random signs; of several calls in one step, times the square root of their number, so that a mean over
    calls is one over steps. Without guidance, these are the signs themselves. ``used`` are the places of the outputs
    that have one, None for all."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cotangents: tuple[torch.Tensor, ...]
    used: tuple[int, ...] | None = None

    def run(self, denoiser: nn.Module, device: torch.device | None = None) -> list[torch.Tensor]:
        """Call the denoiser again; returns its floating-point outputs that are used, shaped as the cotangents.

        Where it computes is looked up, in all of its modules, unless ``device`` says it.
        """
        device = device or execution_device(denoiser)
        args, kwargs = pytree.tree_map(lambda leaf: leaf.to(device) if torch.is_tensor(leaf) else leaf,
                                       (self.args, self.kwargs))  # fmt: skip
        with as_called(denoiser):
            found = outputs_of(denoiser(*args, **kwargs))
        return found if self.used is None else [found[i] for i in self.used]

    @property
    def samples(self) -> int:
        """Samples of the call: the length of its cotangents."""
        return len(self.cotangents[0])

    def halves(self) -> tuple[RecordedCall, RecordedCall]:
        """The call with the first half of its samples, and with the others: tensors with a row a sample are cut."""
        cut = self.samples // 2
        return self._part(slice(cut)), self._part(slice(cut, None))

    def of_image(self, number: int) -> RecordedCall:
        """The call with the samples of one image, the ``number``-th in turn: that one and those that guide it, whose
        cotangents have the same signs."""
        signs = torch.sign(self.cotangents[0].float().flatten(1))
        first = signs[number % self.samples]
        alike = (signs * first).sum(dim=1).abs() >= torch.count_nonzero(first)
        return self._part(alike.nonzero().flatten())

    def _part(self, rows: slice | torch.Tensor) -> RecordedCall:
        """The call with some of its samples."""
        count = self.samples
        args, kwargs, cotangents = pytree.tree_map(
            lambda leaf: leaf[rows] if torch.is_tensor(leaf) and leaf.dim() and len(leaf) == count else leaf,
            (self.args, self.kwargs, self.cotangents),
        )  # fmt: skip
        return RecordedCall(args, kwargs, cotangents, self.used)

    def named(self) -> dict[str, Any]:
        """Keyword arguments and, as ``"0"``, ``"1"``, …, positional ones."""
        return {**{str(i): value for i, value in enumerate(self.args)}, **self.kwargs}


class RecordedCalls(Sequence[RecordedCall]):
    """The calls in a folder, one file each, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = sorted(folder.glob("[0-9]*.safetensors"))

    def some(self, count: int) -> RecordedCalls:
        """At most ``count`` of the calls: of all steps alike, and of each step from all images.

        Every n-th call would be of the same steps in each batch if n goes with their number.
        """
        if count >= len(self):
            return self
        by_step = sorted(range(len(self)), key=lambda i: (self.places[i], i))
        chosen = sorted(by_step[i * len(self) // count] for i in range(count))
        found = RecordedCalls(self.folder)
        found.places = [self.places[i] for i in chosen]
        found._files = [self._files[i] for i in chosen]
        return found

    @property
    def complete(self) -> bool:
        """Whether the files of all batches that were finished are there."""
        return len(self._files) == sum(marked_count(mark) or 0 for mark in self.folder.glob("images-*.json"))

    @property
    def one_by_one(self) -> bool:
        """Whether each of several images had its calls to itself, as of pipelines that cannot make several at once."""
        marks = [mark.stem.split("-")[1:] for mark in self.folder.glob("images-*.json")]
        return len(marks) > 1 and all(int(stop) - int(start) == 1 for start, stop in marks)

    @cached_property
    def places(self) -> list[float]:
        """How far its batch of images was when each call was made: 0 for the first step, 1 for the last."""
        numbers = [int(file.stem.rpartition("-")[2]) for file in self._files]
        return [(number - 1) / max(1, max(numbers) - 1) for number in numbers]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _read(self._files[index])


def outputs_of(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors of a denoiser's output."""
    return [leaf for leaf in pytree.tree_leaves(output) if torch.is_tensor(leaf) and leaf.is_floating_point()]


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within, no parameter of these modules takes gradients."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def foreign(call: RecordedCall) -> str:
    """The class of an argument that no file can hold; empty if there is none."""
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    return next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (torch.Tensor, *_PLAIN))), "")


def write_call(path: Path, call: RecordedCall) -> None:
    found = foreign(call)
    if found:
        raise Qua2SeDiMoError(f"an argument of the denoiser is a {found}, which cannot be kept")
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    tensors: dict[str, torch.Tensor] = {}
    plain: list[Any] = []
    for i, leaf in enumerate(leaves):
        if torch.is_tensor(leaf):
            name, real = f"leaf.{i}", leaf
            if leaf.is_complex():  # such as rotary embeddings
                name, real = _COMPLEX + name, torch.view_as_real(leaf.resolve_conj())
            tensors[name] = real.contiguous()
            plain.append(None)
        else:
            plain.append(leaf)
    tensors |= {f"cotangent.{i}": g.contiguous() for i, g in enumerate(call.cotangents)}
    seen: set[int] = set()
    for name, tensor in tensors.items():  # an argument may be given twice, which a file cannot hold
        tensors[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    used = {} if call.used is None else {"used": list(call.used)}
    save_tensors(path, tensors, {"spec": pytree.treespec_dumps(spec), "plain": plain, **used})


def marked_count(mark: Path) -> int | None:
    """The number of calls in a batch that was finished; None if it was not."""
    try:
        found = read_json(mark)
    except Qua2SeDiMoError:
        return None
    return found if isinstance(found, int) else None


def _read(path: Path) -> RecordedCall:
    stored, about = load_tensors(path, _REMEDY)
    try:
        tensors = {
            name.removeprefix(_COMPLEX): torch.view_as_complex(t) if name.startswith(_COMPLEX) else t
            for name, t in stored.items()
        }
        leaves = [tensors.get(f"leaf.{i}", value) for i, value in enumerate(about["plain"])]
        count = sum(name.startswith("cotangent.") for name in tensors)
        cotangents = tuple(tensors[f"cotangent.{i}"] for i in range(count))
        args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(about["spec"]))
        used = tuple(about["used"]) if "used" in about else None
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise Qua2SeDiMoError(f"{path} is damaged: {error}", _REMEDY) from error
    return RecordedCall(tuple(args), dict(kwargs), cotangents, used)
