"""Calls of a denoiser while its pipeline generates images: recorded to files, run again later."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from qua2sedimo.denoisers import capture_call
from qua2sedimo.denoisers.encoders import is_encoder
from qua2sedimo.denoisers.offload import execution_device
from qua2sedimo.errors import Qua2SeDiMoError, failures_of
from qua2sedimo.formats.files import read_json, write_via
from qua2sedimo.formats.sealed import load_tensors, save_tensors
from qua2sedimo.images.generate import Generator, pictures, without_safety_checker
from qua2sedimo.images.latents import Arguments, observed
from qua2sedimo.images.soundness import check_finite
from qua2sedimo.system.memory import within_memory

#: Of a batch with at least this many calls, every other one is kept: more images tell more than more steps of each.
_MANY = 6
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
        return len(self._files) == sum(_count(mark) or 0 for mark in self.folder.glob("images-*.json"))

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


def record_calls(
    generator: Generator, denoiser: nn.Module, images: range, folder: Path,
    progress: Callable[[int], object] = lambda done: None,
) -> RecordedCalls:  # fmt: skip
    """Generate ``images`` in full precision and keep calls of the denoiser in ``folder``: all, or where there are many,
    half of each batch's, in turn the even and the odd ones.

    A text encoder's calls, before the first step, are all kept. Calls with an argument that cannot be kept are left
    out. Images whose calls are complete are marked, and not generated again. Raises :class:`Qua2SeDiMoError` if no call
    can be kept, or the denoiser is not called.
    """
    folder.mkdir(parents=True, exist_ok=True)
    low = images.start
    while low < images.stop:
        indices = range(low, min(images.stop, low + generator.batch))
        mark = folder / f"images-{indices.start}-{indices.stop}.json"
        there = list(folder.glob(f"{indices.start:06d}*.safetensors"))
        if len(there) != _count(mark):
            for leftover in there:  # of a batch that was interrupted, or lost a file
                leftover.unlink()
            with failures_of(type(generator.pipeline).__name__):
                made = _calls(generator, denoiser, indices)
            if len(indices) > generator.batch:  # the pipeline turned out to take no lists
                continue
            if not made:
                raise Qua2SeDiMoError(f"{type(generator.pipeline).__name__} never called {type(denoiser).__name__}")
            made = [call for call in made if not _foreign(call)] or made
            batch = (low - images.start) // generator.batch
            once = is_encoder(denoiser)
            kept = range(batch % 2, len(made), 2) if len(made) >= _MANY and not once else range(len(made))
            for number in kept:
                place = f".{number + 1:02d}-0001" if once else f"-{number + 1:04d}"  # the last part counts steps
                _write(folder / f"{indices.start:06d}{place}.safetensors", made[number])
            write_via(mark, lambda path, count=len(kept): path.write_text(json.dumps(count)))  # type: ignore[misc]
        low = indices.stop
        progress(low - images.start)
    return RecordedCalls(folder)


def record_texts(generator: Generator, denoiser: nn.Module, images: range, folder: Path) -> RecordedCalls:
    """Keep the first call of the denoiser for each batch of ``images`` in ``folder``: nothing is generated, but their
    prompts are encoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for low in range(images.start, images.stop, generator.batch):
        indices = range(low, min(images.stop, low + generator.batch))
        path = folder / f"{low:06d}-0001.safetensors"
        if not path.exists():
            with torch.no_grad(), without_safety_checker(generator.pipeline):
                call = capture_call(generator.pipeline, denoiser, run=lambda i=indices: generator.run(i))  # type: ignore[misc]
            _write(path, RecordedCall(call.args, call.kwargs, ()))
    return RecordedCalls(folder)


def _calls(generator: Generator, denoiser: nn.Module, indices: range) -> list[RecordedCall]:
    """The calls of one batch of images."""
    pipeline = generator.pipeline
    recorder = (_EncoderRecorder if is_encoder(denoiser) else _Recorder)(generator.generation.number(indices.start, 2))
    # Pipelines forbid gradients by a decorator; what it wraps lets them pass from the guided output to the denoiser's.
    undecorated = getattr(type(pipeline).__call__, "__wrapped__", None)
    function = functools.partial(undecorated, pipeline) if undecorated is not None else pipeline

    def recorded(called: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        recorder.forget()
        torch.manual_seed(generator.generation.number(indices.start, 1))
        return called(**arguments)

    def begin(**arguments: Any) -> Any:
        try:
            return recorded(function, arguments)
        except RuntimeError as error:
            # Some pipelines leave torch between the denoiser and the guided output, or pass what a call gave, such as
            # keys and values, to the next one, whose attention may have no backward pass.
            if "requires grad" not in str(error) and not isinstance(error, NotImplementedError):
                raise
        recorder.differentiates = False
        return recorded(pipeline, arguments)

    hook = denoiser.register_forward_hook(recorder.called, with_kwargs=True)
    try:
        with (
            _frozen(pipeline),
            without_safety_checker(pipeline),
            recorder.stepping(pipeline),
            torch.enable_grad(),
            torch.random.fork_rng(range(torch.cuda.device_count())),
            within_memory(f"{len(indices)} images at once do not fit into memory"),
        ):
            check_finite(pictures(pipeline, generator.run(indices, begin)), type(pipeline).__name__)
    finally:
        hook.remove()
    return recorder.finished()


class _Recorder:
    """Keeps the calls of a denoiser, and what a random sign on each guided output means for them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        #: Whether gradients are taken from the guided output; otherwise every output has random signs itself.
        self.differentiates = True
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._chance = torch.Generator().manual_seed(self._seed)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []
        self._cotangents: list[tuple[torch.Tensor, ...]] = []

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        args, kwargs = pytree.tree_map(lambda leaf: leaf.detach().clone().cpu() if torch.is_tensor(leaf) else leaf,
                                       (args, kwargs))  # fmt: skip
        leaves, spec = pytree.tree_flatten(output)
        leaves = [
            leaf.detach().requires_grad_(self.differentiates)
            if torch.is_tensor(leaf) and leaf.is_floating_point()
            else leaf
            for leaf in leaves
        ]
        output = pytree.tree_unflatten(leaves, spec)
        self._calls.append((args, kwargs, outputs_of(output)))
        return output

    @contextmanager
    def stepping(self, pipeline: Any) -> Iterator[None]:
        """Within, a step of the scheduler completes the calls since the one before."""
        scheduler = getattr(pipeline, "scheduler", None)
        if not callable(getattr(scheduler, "step", None)):
            yield
            return

        def stepped(model_output: Any, *args: Any, **kwargs: Any) -> Arguments:
            if torch.is_tensor(model_output):
                self._complete(model_output)
                model_output = model_output.detach()
            return (model_output, *args), kwargs

        with observed(scheduler, "step", before=stepped):
            yield

    def finished(self) -> list[RecordedCall]:
        self._complete(None)
        return [RecordedCall(args, kwargs, of) for (args, kwargs, _), of in zip(self._calls, self._cotangents)]

    def _complete(self, guided: torch.Tensor | None) -> None:
        waiting = self._calls[len(self._cotangents) :]
        outputs = [out for _, _, outs in waiting for out in outs]
        found: Sequence[torch.Tensor | None] = [None] * len(outputs)
        if guided is not None and guided.requires_grad and outputs:
            found = torch.autograd.grad(guided, outputs, self._signs(guided), allow_unused=True)
        if all(g is None for g in found):  # no guidance that gradients pass: signs on the outputs themselves
            found = [self._signs(out) for out in outputs]
        at, factor = 0, 1.0 if guided is None else len(waiting) ** 0.5
        for _, _, outs in waiting:
            own = [torch.zeros_like(o) if g is None else factor * g for o, g in zip(outs, found[at : at + len(outs)])]
            self._cotangents.append(tuple(g.detach().cpu() for g in own))
            at += len(outs)
        for place, (args, kwargs, _) in enumerate(self._calls):
            self._calls[place] = (args, kwargs, [])  # frees the outputs

    def _signs(self, like: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, like.shape, generator=self._chance) * 2.0 - 1.0
        return signs.to(like.device, like.dtype)


class _EncoderRecorder(_Recorder):
    """Keeps the calls of a text encoder, made before the first step: the guided output of every step depends on them.

    An output's cotangent is the sum over steps of what their signs mean for it, times √(calls / steps). Signs of
    different steps are independent; so the mean over calls of the squared change that a weight's error makes is, in
    expectation, the mean over steps of the change of the guided output by all calls together, as for a denoiser.
    """

    def forget(self) -> None:
        """Begin anew."""
        super().forget()
        self._sums: list[list[torch.Tensor | None]] = []
        self._steps = 0

    def _complete(self, guided: torch.Tensor | None) -> None:
        self._sums += [[None] * len(outputs) for *_, outputs in self._calls[len(self._sums) :]]
        outputs = [out for *_, outs in self._calls for out in outs]
        if guided is None or not guided.requires_grad or not outputs:
            return
        self._steps += 1
        # The graph from these outputs to the prompt's embeddings is that of all steps.
        found = iter(torch.autograd.grad(guided, outputs, self._signs(guided), retain_graph=True, allow_unused=True))
        for sums in self._sums:
            for place, before in enumerate(sums):
                gradient = next(found)
                if gradient is not None:
                    sums[place] = gradient.float() if before is None else before + gradient.float()

    def finished(self) -> list[RecordedCall]:
        self._complete(None)
        factor = (len(self._calls) / max(1, self._steps)) ** 0.5
        calls: list[RecordedCall] = []
        for (args, kwargs, outputs), sums in zip(self._calls, self._sums):
            used = tuple(place for place, total in enumerate(sums) if total is not None)
            scaled = [(sums[place], outputs[place].dtype) for place in used]
            cotangents = tuple((total * factor).to(dtype).cpu() for total, dtype in scaled if total is not None)
            calls.append(RecordedCall(args, kwargs, cotangents, used))
        return calls


@contextmanager
def _frozen(pipeline: Any) -> Iterator[None]:
    """Within, no parameter of the pipeline takes gradients: nothing of text encoder and decoder is kept for them."""
    modules = [m for m in pipeline.components.values() if isinstance(m, nn.Module)]
    with frozen(*modules):
        yield


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


def _foreign(call: RecordedCall) -> str:
    """The class of an argument that no file can hold; empty if there is none."""
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    return next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (torch.Tensor, *_PLAIN))), "")


def _write(path: Path, call: RecordedCall) -> None:
    foreign = _foreign(call)
    if foreign:
        raise Qua2SeDiMoError(f"an argument of the denoiser is a {foreign}, which cannot be kept")
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


def _count(mark: Path) -> int | None:
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
