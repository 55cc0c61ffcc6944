"""Recording: calls of a component are kept while its pipeline generates images, with what they mean for the images."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from qua2sedimo.denoisers import capture_call
from qua2sedimo.denoisers.components import as_called, is_decoder, is_encoder
from qua2sedimo.errors import Qua2SeDiMoError, failures_of
from qua2sedimo.formats.files import read_json, write_json, write_via
from qua2sedimo.images.generate import Generator, pictures, without_safety_checker
from qua2sedimo.images.latents import Arguments, observed
from qua2sedimo.images.soundness import check_finite
from qua2sedimo.statistics.calls import (
    RecordedCall,
    RecordedCalls,
    foreign,
    frozen,
    marked_count,
    outputs_of,
    write_call,
)
from qua2sedimo.statistics.gain import picture_gain
from qua2sedimo.system.memory import within_memory

#: Of a batch with at least this many calls, every other one is kept: more images tell more than more steps of each.
_MANY = 6


def record_calls(
    generator: Generator, denoiser: nn.Module, images: range, folder: Path,
    progress: Callable[[int], object] = lambda done: None, within: range | None = None,
) -> RecordedCalls:  # fmt: skip
    """Generate ``images`` in full precision and keep calls of the denoiser in ``folder``: all, or where there are many,
    half of each batch's, in turn the even and the odd ones. ``within``: only some batches of them.

    A text encoder's calls, before the first step, are all kept, and an autoencoder's, after the last. Calls with an
    argument that cannot be kept are left out. Images whose calls are complete are marked, and not generated again.
    Raises :class:`Qua2SeDiMoError` if no call can be kept, or the denoiser is not called.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorder = _recorder(generator, denoiser, images, folder)
    within = images if within is None else within
    low = within.start
    while low < within.stop:
        indices = range(low, min(within.stop, low + generator.batch))
        if not _is_kept(folder, indices):
            for leftover in _files(folder, indices):  # of a batch that was interrupted, or lost a file
                leftover.unlink()
            with failures_of(type(generator.pipeline).__name__):
                made = _calls(generator, denoiser, recorder, indices)
            if len(indices) > generator.batch:  # the pipeline turned out to take no lists
                continue
            if not made:
                raise Qua2SeDiMoError(f"{type(generator.pipeline).__name__} never called {type(denoiser).__name__}")
            made = [call for call in made if not foreign(call)] or made
            batch = (low - images.start) // generator.batch
            before, behind = is_encoder(denoiser), is_decoder(denoiser)
            once = before or behind
            kept = range(batch % 2, len(made), 2) if len(made) >= _MANY and not once else range(len(made))
            for number in kept:
                # The last part of a name counts steps: those before them are of the first, those behind of the last.
                place = f".{number + 1:02d}-000{1 if before else 2}" if once else f"-{number + 1:04d}"
                write_call(folder / f"{indices.start:06d}{place}.safetensors", made[number])
            write_via(batch_mark(folder, indices), lambda path, count=len(kept): path.write_text(json.dumps(count)))  # type: ignore[misc]
        low = indices.stop
        progress(low - images.start)
    return RecordedCalls(folder)


def prepare_recording(generator: Generator, denoiser: nn.Module, images: range, folder: Path) -> None:
    """Find out and keep what all who record some of ``images`` have to know alike."""
    folder.mkdir(parents=True, exist_ok=True)
    _recorder(generator, denoiser, images, folder)


def missing_batches(images: range, batch: int, folder: Path) -> list[range]:
    """The batches whose calls are not kept: as one, or image by image."""
    batches = (range(low, min(images.stop, low + batch)) for low in range(images.start, images.stop, batch))
    missing = [some for some in batches if not _is_kept(folder, some)]
    return [some for some in missing if not all(_is_kept(folder, range(i, i + 1)) for i in some)]


def batch_mark(folder: Path, indices: range) -> Path:
    """The file that says that the calls of a batch are complete."""
    return folder / f"images-{indices.start}-{indices.stop}.json"


def _files(folder: Path, indices: range) -> list[Path]:
    return list(folder.glob(f"{indices.start:06d}*.safetensors"))


def _is_kept(folder: Path, indices: range) -> bool:
    return len(_files(folder, indices)) == marked_count(batch_mark(folder, indices))


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
            write_call(path, RecordedCall(call.args, call.kwargs, ()))
    return RecordedCalls(folder)


def _recorder(generator: Generator, denoiser: nn.Module, images: range, folder: Path) -> _Recorder:
    """What keeps the calls of this component."""
    if is_encoder(denoiser):
        return _EncoderRecorder()
    if not is_decoder(denoiser):
        return _Recorder()
    path = folder / "gain.json"
    gain = _known_gain(path)
    if gain is None:
        with failures_of(type(generator.pipeline).__name__), within_memory("images do not fit into memory"):
            gain = picture_gain(generator, denoiser, images[: generator.batch])
        write_json(path, gain)
    return _DecoderRecorder(gain)


def _known_gain(path: Path) -> float | None:
    """What :func:`picture_gain` was found to be; None if it was not, or the file is damaged."""
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except Qua2SeDiMoError:
        return None
    return found if isinstance(found, float) and 0 < found < float("inf") else None


def _calls(generator: Generator, denoiser: nn.Module, recorder: _Recorder, indices: range) -> list[RecordedCall]:
    """The calls of one batch of images."""
    pipeline = generator.pipeline
    recorder.begin(generator.generation.number(indices.start, 2))
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
            as_called(denoiser),
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

    #: Whether gradients are taken from the guided output; otherwise every output has random signs itself.
    differentiates = True

    def begin(self, seed: int) -> None:
        """Begin a batch of images."""
        self._seed, self.differentiates = seed, type(self).differentiates
        self.forget()

    def forget(self) -> None:
        """Begin the same batch anew."""
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


class _DecoderRecorder(_Recorder):
    """Keeps the calls of an autoencoder, made after the last step, with signs on the picture itself.

    They are divided by the root of the ``gain``, the squared change of the picture for that of the guided output: so an
    error here counts as much as one of the denoiser that changes the picture as much. Their factor is √(calls), as the
    picture is of all calls together.
    """

    differentiates = False

    def __init__(self, gain: float) -> None:
        self._gain = gain

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        args, kwargs = pytree.tree_map(  # no decoder draws from a generator that it is given, and no file holds one
            lambda leaf: None if isinstance(leaf, torch.Generator) else leaf, (args, kwargs)
        )
        return super().called(module, args, kwargs, output)

    def finished(self) -> list[RecordedCall]:
        calls = super().finished()
        factor = (len(calls) / self._gain) ** 0.5
        return [replace(call, cotangents=tuple(factor * g for g in call.cotangents)) for call in calls]


@contextmanager
def _frozen(pipeline: Any) -> Iterator[None]:
    """Within, no parameter of the pipeline takes gradients: nothing of text encoder and decoder is kept for them."""
    modules = [m for m in pipeline.components.values() if isinstance(m, nn.Module)]
    with frozen(*modules):
        yield
