"""What layers see while images are generated: averaged exactly, kept, resumed, refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibration.pipelines import PIPELINES, contents, observation
from tests.conftest import small_pipeline, small_settings
from tests.denoisers.small import SMALL
from torch import nn

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.bank import Bank, Observed
from qua2sedimo.denoisers import Graph, capture_call, denoiser_of, trace, unit_weight, weight_modules
from qua2sedimo.images.generate import Generator
from qua2sedimo.options import SearchSpace
from qua2sedimo.quantizers import METHODS, Moment, dequantize_weight
from qua2sedimo.statistics import (
    Observation,
    RecordedCall,
    RecordedCalls,
    Statistics,
    find_sources,
    observe,
    observe_moments,
    output_changes,
    squared_gradients,
)
from qua2sedimo.statistics.recording import record_texts

GUIDANCE = 3.0
EVERY = 3  # of the recorded calls, one in three has a backward pass


@dataclass(frozen=True)
class Seen:
    what: Observation
    statistics: Statistics

    @property
    def denoiser(self) -> Any:
        return self.what.denoiser


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    what = observation(request.param, guidance=GUIDANCE)
    return Seen(what, observe(tmp_path_factory.mktemp("seen") / "statistics", what))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return observation().graph


def rows_of(denoiser: nn.Module, graph: Graph, unit: str, calls: Sequence[RecordedCall]) -> torch.Tensor:
    """The unit's inputs in all calls [positions, n], by hooks of this test and torch's own unfolding."""
    layer, found = graph.layers[unit], []

    def hook(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0]
        if isinstance(module, nn.Linear):
            x = x.reshape(-1, x.shape[-1])
            found.append(x if layer.span is None else x[:, slice(*layer.span)])
            return
        x = x if layer.span is None else x[:, slice(*layer.span)]
        unfolded = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        found.append(unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1]))

    handles = [denoiser.get_submodule(n).register_forward_pre_hook(hook) for n in (layer.module, *layer.copies)]
    with torch.no_grad():
        for call in calls:
            call.run(denoiser)
    for handle in handles:
        handle.remove()
    return torch.cat(found).double()


def moment_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.T @ rows / len(rows)


def close(found: Moment | None, expected: torch.Tensor) -> None:
    assert found is not None
    (block,) = found.blocks
    torch.testing.assert_close(block.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


# Calls -------------------------------------------------------------------------------------------------------------


def test_recorded_calls_run_again_give_what_the_pipeline_got(seen: Seen) -> None:
    outputs: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0].clone())

    handle = seen.denoiser.register_forward_hook(keep)
    images = seen.what.images
    seen.what.generator(images.start, images.stop)
    handle.remove()
    calls = seen.statistics.calls
    assert len(calls) == len(outputs) == 4  # two batches, two steps
    with torch.no_grad():
        for call, expected in zip(calls, outputs):
            (found,) = call.run(seen.denoiser)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def guided(pipeline: str, out: torch.Tensor) -> torch.Tensor:
    """What the pipeline gives to its scheduler."""
    if pipeline == "dit":
        with_class, without = out.chunk(2)
        half = without + GUIDANCE * (with_class - without)
        return torch.cat([half, half])
    without, with_text = out.chunk(2)
    return without + GUIDANCE * (with_text - without)


def test_cotangents_are_the_gradients_of_the_guided_output_times_signs(seen: Seen, request: Any) -> None:
    pipeline = request.node.callspec.params["seen"]
    for call in seen.statistics.calls:
        (cotangent,) = call.cotangents
        with torch.no_grad():
            (out,) = call.run(seen.denoiser)
        out.requires_grad_()
        told = cotangent.chunk(2)[0 if pipeline == "dit" else 1] / GUIDANCE  # the signs, or for DiT their sums
        allowed = {-2.0, 0.0, 2.0} if pipeline == "dit" else {-1.0, 1.0}
        assert set(told.round(decimals=4).unique().tolist()) == allowed
        assert abs(float(told.mean())) < 0.5
        signs = torch.cat([told / 2, told / 2]) if pipeline == "dit" else told
        (expected,) = torch.autograd.grad(guided(pipeline, out), out, signs)
        torch.testing.assert_close(cotangent, expected)


def test_without_guidance_cotangents_are_signs_which_differ_from_image_to_image(tmp_path: Path) -> None:
    calls = observe(tmp_path, observation("pixart", guidance=1.0)).calls
    signs = torch.cat([call.cotangents[0] for call in calls])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert len({bytes((row > 0).numpy()) for row in signs}) == len(signs) == 6


@pytest.mark.parametrize(
    ("batches", "steps", "count"), [(32, 10, 64), (32, 10, 54), (20, 6, 20), (7, 30, 64), (3, 4, 6)]
)
def test_some_calls_are_of_all_steps_and_of_all_batches(tmp_path: Path, batches: int, steps: int, count: int) -> None:
    """Every n-th of them would be of the same steps in each batch. Half are kept, as they are recorded."""
    for batch in range(batches):
        for number in range(batch % 2, steps, 2):
            (tmp_path / f"{4 * batch:06d}-{number + 1:04d}.safetensors").touch()
    calls = RecordedCalls(tmp_path)
    some = calls.some(count)
    assert len(some) == len(some.places) == min(count, len(calls)) and set(some.places) <= set(calls.places)
    of_step = [some.places.count(place) for place in sorted(set(calls.places))]
    assert max(of_step) - min(of_step) <= 2 and min(some.places) == 0 and max(some.places) == 1
    batch_of = [int(file.stem[:6]) for file in some._files]
    most = max(batch_of.count(batch) for batch in set(batch_of))
    assert most <= 2 * -(-count // batches) + 1
    assert len(calls.some(10**6)) == len(calls)


# Moments -----------------------------------------------------------------------------------------------------------


def test_moments_are_the_average_of_what_hooks_see(seen: Seen) -> None:
    """Those of layers that see only the time, or padded text, have tests of their own."""
    checked = 0
    for source in seen.statistics.sources:
        if not source.only_time(seen.what.sample) and not source.only_condition(seen.what.sample):
            rows = rows_of(seen.denoiser, seen.what.graph, source.name, seen.statistics.calls)
            for unit in source.units:
                close(seen.statistics.moment(unit), moment_of(rows))
            checked += 1
    assert checked >= 8


def test_units_of_one_source_see_the_same_and_every_unit_has_a_source(seen: Seen) -> None:
    units = [unit for source in seen.statistics.sources for unit in source.units]
    assert sorted(units) == sorted(seen.what.units)
    for source in seen.statistics.sources:
        first, *others = (
            rows_of(seen.denoiser, seen.what.graph, unit, seen.statistics.calls[:1]) for unit in source.units
        )
        assert all(torch.equal(first[: len(other)], other[: len(first)]) for other in others), source.units


def test_queries_keys_and_values_of_self_attention_share_a_source(seen: Seen) -> None:
    places = {unit: i for i, source in enumerate(seen.statistics.sources) for unit in source.units}
    shared = [unit.removesuffix("to_q") for unit in places if unit.endswith("attn1.to_q")]
    assert shared
    assert all(places[f"{n}to_q"] == places[f"{n}to_k"] == places[f"{n}to_v"] for n in shared)


def test_layers_between_which_a_norm_with_weights_stands_do_not_share_a_source() -> None:
    """In SD3 the query of a block and its feed-forward read the same tensor behind different norms."""
    model, call = SMALL["sd3"]()
    made = trace(model, (), call)
    sources, uncalled = find_sources(model, made, list(made.layers), RecordedCall((), call, ()))
    assert uncalled == []
    for source in sources:
        first, *others = (rows_of(model, made, unit, [RecordedCall((), call, ())]) for unit in source.units)
        assert all(torch.equal(first, other) for other in others), source.units


def test_layers_that_see_only_the_time_are_observed_over_the_whole_schedule(seen: Seen) -> None:
    """Half of the weight is on the recorded steps, half on 64 times from 0 to the last."""
    name = next(n for n in seen.what.units if n.endswith(("timestep_embedder.linear_1", "time_embedding.linear_1")))
    rows = rows_of(seen.denoiser, seen.what.graph, name, seen.statistics.calls)
    embed = next(m for n, m in seen.denoiser.named_modules() if n.endswith("time_proj"))
    times = torch.linspace(0, 999, 64, dtype=torch.float64)
    everywhere = embed(times.round()).double()
    close(seen.statistics.moment(name), (moment_of(rows) + moment_of(everywhere)) / 2)


def test_padded_text_is_left_out(seen: Seen, request: Any) -> None:
    if request.node.callspec.params["seen"] != "pixart":
        pytest.skip("only PixArt is told which tokens are padding")
    calls = seen.statistics.calls
    mask = torch.cat([call.kwargs["encoder_attention_mask"].reshape(-1) for call in calls]).bool()
    assert 0 < int(mask.sum()) < len(mask)
    sources = [s for s in seen.statistics.sources if s.only_condition(seen.what.sample)]
    assert {"caption_projection.linear_1", "caption_projection.linear_2"} < {u for s in sources for u in s.units}
    for source in sources:
        rows = rows_of(seen.denoiser, seen.what.graph, source.name, calls)
        close(seen.statistics.moment(source.name), moment_of(rows[mask]))


def test_a_source_of_many_inputs_has_its_moment_in_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qua2sedimo.statistics.sources.MOST_INPUTS", 50)
    what = observation()
    found = observe(tmp_path, what)
    moment = found.moment("transformer_blocks.0.ff.net.2")
    assert moment is not None and [len(b) for b in moment.blocks] == [42, 43, 43]
    expected = moment_of(rows_of(what.denoiser, what.graph, "transformer_blocks.0.ff.net.2", found.calls))
    for (a, b), block in zip(moment.spans(), moment.blocks):
        torch.testing.assert_close(block.double(), expected[a:b, a:b], rtol=1e-4, atol=1e-5)


def test_of_many_positions_a_sample_is_taken(monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
    """On average its moment is the exact one; a seed always gives the same, another seed another."""
    monkeypatch.setattr("qua2sedimo.statistics.moments.POSITIONS", 40)
    sources = [s for s in seen.statistics.sources if s.name.endswith(("attn1.to_q", "conv_in", "pos_embed.proj"))]
    call = seen.statistics.calls[0]
    taken = [
        observe_moments(seen.denoiser, seen.what.graph, sources, [call], seen.what.sample, None, seed)
        for seed in (0, 0, *range(1, 40))
    ]
    for source, first, again, *others in zip(sources, *taken):
        exact = moment_of(rows_of(seen.denoiser, seen.what.graph, source.name, [call]))
        assert first[1] == 40
        assert torch.equal(first[0].blocks[0], again[0].blocks[0])
        assert not any(torch.equal(first[0].blocks[0], other[0].blocks[0]) for other in others)
        mean = torch.stack([first[0].blocks[0], *(other[0].blocks[0] for other in others)]).mean(0)
        assert float((mean - exact).norm() / exact.norm()) < 0.25


def test_layers_that_see_only_the_text_are_observed_with_other_prompts_too(tmp_path: Path) -> None:
    """Half of their moment is of the study's images, half of calls with those prompts; other moments are as before."""
    what = observation("pixart")
    texts = [f"{colour} hair, {top} top" for colour in ("brown", "green", "auburn") for top in ("navy", "mint", "red")]
    before, ends = observe(tmp_path / "a", what), list[Any]()
    handle = what.denoiser.proj_out.register_forward_hook(lambda *_: ends.append(None))
    found = observe(tmp_path / "b", replace(what, texts=texts))
    handle.remove()
    # Recorded; run again for moments and every third for gradients; once to find out who sees what; then, of many calls
    # with other times and with other texts, the first of each.
    recorded_calls = len(found.calls)
    assert len(ends) == 2 * recorded_calls + -(-recorded_calls // EVERY) + 1 + 2
    other = replace(what.generator.generation, inputs=texts)
    pipeline = what.generator.pipeline
    calls = [
        capture_call(pipeline, what.denoiser, Generator(pipeline, other).call_arguments(range(low, min(low + 2, 9))))
        for low in range(0, 9, 2)
    ]
    told = 0
    for source in before.sources:
        old, new = before.moment(source.name), found.moment(source.name)
        assert old is not None and new is not None
        if not source.only_condition(what.sample):
            if not source.only_time(what.sample):
                assert torch.equal(old.blocks[0], new.blocks[0])
            continue
        told += 1
        recorded = [RecordedCall(call.args, call.kwargs, ()) for call in calls]
        rows = text_rows(what.denoiser, what.graph, source.name, recorded)
        close(new, (old.blocks[0].double() + moment_of(rows)) / 2)
    assert told >= 2  # the caption projection and the cross-attentions' keys and values


def test_texts_are_encoded_one_by_one_where_a_pipeline_takes_no_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments for several at once may not fit together: nothing calls the denoiser with them before."""
    what = replace(observation("pixart"), texts=["red hair", "mint top", "auburn hair"])
    what.generator.one_by_one = True
    kept: list[int] = []

    def recorded(*arguments: Any) -> RecordedCalls:
        found = record_texts(*arguments)
        kept.append(len(found))
        return found

    monkeypatch.setattr("qua2sedimo.statistics.observing.record_texts", recorded)
    found = observe(tmp_path, what)
    assert found.calls.one_by_one and kept == [3]
    assert not (tmp_path / "texts").exists(), "nothing needs them any more"
    assert not observe(tmp_path / "together", observation("pixart")).calls.one_by_one


def text_rows(denoiser: nn.Module, graph: Graph, unit: str, calls: Sequence[RecordedCall]) -> torch.Tensor:
    """The unit's inputs at the tokens that are no padding."""
    found = []
    for call in calls:
        mask = call.kwargs["encoder_attention_mask"].bool()
        rows = rows_of(denoiser, graph, unit, [call])
        found.append(rows[mask.flatten()])
    return torch.cat(found)


def test_of_many_calls_each_batch_keeps_half_in_turn(tmp_path: Path) -> None:
    found = observe(tmp_path, observation(steps=6))  # two batches
    names = [path.stem for path in sorted((tmp_path / "calls").glob("*.safetensors"))]
    assert names == ["050000-0001", "050000-0003", "050000-0005", "050002-0002", "050002-0004", "050002-0006"]
    times = [float(torch.as_tensor(call.named()["timestep"]).flatten()[0]) for call in found.calls]
    assert len(set(times)) == 6  # all steps of the schedule


# Gradients ---------------------------------------------------------------------------------------------------------


def by_hand(denoiser: nn.Module, graph: Graph, units: Sequence[str], calls: Sequence[RecordedCall]) -> dict[str, Any]:
    """Squared gradients by module: retained at every output, summed over samples, positions and copies."""
    totals: dict[str, torch.Tensor] = {}
    layers = {graph.layers[unit].module: graph.layers[unit] for unit in units}
    before = {p: p.requires_grad for p in denoiser.parameters()}
    denoiser.requires_grad_(True)
    for call in calls:
        kept: dict[str, list[torch.Tensor]] = defaultdict(list)

        def keep(module: nn.Module, args: Any, out: torch.Tensor, kept: Any = kept, owner: str = "") -> None:
            out.retain_grad()
            kept[owner].append(out)

        handles = [
            denoiser.get_submodule(name).register_forward_hook(
                lambda m, a, out, owner=module: keep(m, a, out, owner=owner, kept=kept)  # noqa: B023
            )
            for module, layer in layers.items()
            for name in (module, *layer.copies)
        ]
        sum((o * g).sum() for o, g in zip(call.run(denoiser), call.cotangents)).backward()
        for handle in handles:
            handle.remove()
        for module, outputs in kept.items():
            channels_first = not isinstance(denoiser.get_submodule(module), nn.Linear)
            for out in outputs:
                squares = out.grad.double().square()
                squares = squares.movedim(1, -1) if channels_first else squares
                totals[module] = totals.get(module, 0) + squares.reshape(-1, squares.shape[-1]).sum(0)
    for p, needed in before.items():
        p.requires_grad_(needed)
        p.grad = None
    return {name: total / len(calls) for name, total in totals.items()}


def test_squared_gradients_are_those_by_hand(seen: Seen) -> None:
    calls = list(seen.statistics.calls.some(-(-len(seen.statistics.calls) // EVERY)))
    expected = by_hand(seen.denoiser, seen.what.graph, seen.what.units, calls)
    assert seen.statistics.index.gradients
    for unit in seen.what.units:
        found = seen.statistics.gradient(unit)
        assert found is not None and found.dtype == torch.float64
        wanted = expected[seen.what.graph.layers[unit].module]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6 * float(wanted.max()))
    assert not any(p.requires_grad or p.grad is not None for p in seen.denoiser.parameters())


def test_squared_gradients_are_those_by_finite_differences() -> None:
    """In fp64: a little more in one channel of one sample changes the output by the gradient."""
    what = observation()
    denoiser, unit, step = deepcopy(what.denoiser).double(), "transformer_blocks.1.norm1.linear", 1e-4
    chance = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 8, 8, generator=chance, dtype=torch.float64)
    signs = torch.randint(0, 2, (2, 1, 8, 8), generator=chance).double() * 2 - 1
    kwargs = {"timestep": torch.tensor([7, 500]), "class_labels": torch.tensor([1, 2])}
    call = RecordedCall((x,), kwargs, (signs,))
    found = squared_gradients(denoiser, {unit: what.graph.layers[unit]}, [call])
    assert found is not None

    def change(sample: int, channel: int, by: float) -> float:
        def add(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[sample, channel] += by
            return out

        handle = denoiser.get_submodule(unit).register_forward_hook(add)
        with torch.no_grad():
            (out,) = call.run(denoiser)
        handle.remove()
        return float((out * signs).sum())

    for channel in (0, 40, 75, 170):
        slopes = [(change(s, channel, step) - change(s, channel, -step)) / (2 * step) for s in range(2)]
        assert float(found[unit][channel]) == pytest.approx(sum(s**2 for s in slopes), rel=1e-4)


def test_without_memory_for_a_backward_pass_there_are_no_gradients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    what = observation()
    monkeypatch.setattr(torch.autograd, "backward", full)
    found = observe(tmp_path, what)
    monkeypatch.undo()
    assert not found.index.gradients and not (tmp_path / "gradients.safetensors").exists()
    assert all(found.gradient(unit) is None for unit in what.units)
    bank = bank_of(what, found, tmp_path / "bank")
    assert bank.costs() is None
    assert all(e.cost is None and e.output is not None for of in bank.errors.values() for e in of.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in what.denoiser.modules())


def test_where_an_operation_has_no_backward_pass_there_are_no_gradients(tmp_path: Path) -> None:
    what = observation(guidance=GUIDANCE)
    plain = what.denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError("FlexAttention does not support backward on CPU.")
        return plain(*args, **kwargs)

    what.denoiser.forward = forward
    found = observe(tmp_path / "without", what)
    assert not found.index.gradients and all(found.moment(unit) is not None for unit in what.units)
    layers = {unit: what.graph.layers[unit] for unit in what.units}
    assert output_changes(what.denoiser, layers, found.calls[:1], lambda *_: torch.zeros(1)) is None


def test_where_memory_is_short_a_backward_pass_is_run_in_parts(monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
    """Whatever fits, the sums over samples are the same."""
    calls = [seen.statistics.calls[0], seen.statistics.calls[2]]
    layers = {unit: seen.what.graph.layers[unit] for unit in seen.what.units}
    whole = squared_gradients(seen.denoiser, layers, calls)
    backward, ran = torch.autograd.backward, []

    def short(outputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]) -> None:
        backward(outputs, cotangents)  # memory runs out after some gradients were found
        ran.append(len(outputs[0]))
        if len(outputs[0]) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.autograd, "backward", short)
    parts = squared_gradients(seen.denoiser, layers, calls)
    assert whole is not None and parts is not None and max(ran) > 1
    for unit, expected in whole.items():
        torch.testing.assert_close(parts[unit], expected, rtol=2e-3, atol=1e-5 * float(expected.max()))


def test_another_error_of_a_backward_pass_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(torch.autograd, "backward", broken)
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        observe(tmp_path, observation())


def test_the_pipeline_is_as_it_was_after_observing(seen: Seen, request: Any) -> None:
    _, fresh = denoiser_of(PIPELINES[request.node.callspec.params["seen"]]())
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, seen.denoiser.state_dict()[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in seen.denoiser.modules())
    assert "step" not in vars(seen.what.generator.pipeline.scheduler)


# Passes and interruptions ------------------------------------------------------------------------------------------


@pytest.fixture
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that some are left out, which must not depend on what is observed together."""
    monkeypatch.setattr("qua2sedimo.statistics.moments.POSITIONS", 24)


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_several_passes_with_little_memory_give_the_same_files(name: str, few_positions: None, tmp_path: Path) -> None:
    passes: dict[int, int] = {}
    large, small, none = (10**9, 50_000, 1) if name == "dit" else (10**9, 10**6, 200_000)
    for memory in (large, small, none):
        what = observation(name, memory=memory, images=2, steps=1)
        totals: list[int] = []

        def report(done: int, total: int, what: str, totals: list[int] = totals) -> None:
            totals += [total] if "inputs" in what else []

        observe(tmp_path / str(memory), what, report)
        passes[memory] = totals[-1]
    assert passes[large] == 1 < passes[small] < passes[none]
    one, few, many = (contents(tmp_path / str(memory)) for memory in (large, small, none))
    assert one == few == many


class Interrupted(KeyboardInterrupt):
    pass


def stopping_at(number: int) -> Callable[[int, int, str], None]:
    """A progress function that raises at its call of this number."""
    count = 0

    def report(done: int, total: int, what: str) -> None:
        nonlocal count
        count += 1
        if count > number:
            raise Interrupted

    return report


def little(graph: Graph, **changes: Any) -> Observation:
    """Two batches, one call each; three groups of sources."""
    return observation(memory=150_000, steps=1, graph=graph, **changes)


def test_interrupted_anywhere_it_goes_on_and_ends_with_the_same_files(
    few_positions: None, tmp_path: Path, graph: Graph
) -> None:
    said: list[str] = []
    whole = observe(tmp_path / "whole", little(graph), lambda done, total, what: said.append(what))
    assert whole.index.gradients and said.count("observing: layer inputs") >= 6
    expected = contents(tmp_path / "whole")
    for number in range(len(said)):
        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            observe(folder, little(graph), stopping_at(number))
        assert not Statistics.is_finished(folder)
        observe(folder, little(graph))
        assert contents(folder) == expected, number


def test_finished_work_is_not_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph) -> None:
    observe(tmp_path, little(graph))
    before = contents(tmp_path)
    (tmp_path / "index.json").unlink()
    for place in ("observe_moments", "squared_gradients"):
        monkeypatch.setattr(f"qua2sedimo.statistics.observing.{place}", lambda *_, **__: pytest.fail("done before"))
    monkeypatch.setattr("qua2sedimo.statistics.recording._calls", lambda *_, **__: pytest.fail("done before"))
    observe(tmp_path, little(graph))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [1, 5])
def test_a_process_that_was_killed_is_taken_up(few_positions: None, tmp_path: Path, graph: Graph, number: int) -> None:
    def work() -> None:
        count = 0

        def report(done: int, total: int, what: str) -> None:
            nonlocal count
            count += 1
            if count > number:
                (tmp_path / "killed" / ".0001.safetensors.1.tmp").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)

        observe(tmp_path / "killed", little(graph), report)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    observe(tmp_path / "killed", little(graph))
    observe(tmp_path / "whole", little(graph))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_batch_that_was_half_recorded_is_recorded_again(tmp_path: Path, graph: Graph) -> None:
    observe(tmp_path / "whole", little(graph))
    with pytest.raises(KeyboardInterrupt):
        observe(tmp_path / "half", little(graph), stopping_at(0))
    calls = tmp_path / "half" / "calls"
    (call,) = calls.glob("*.safetensors")
    call.write_bytes(b"left over")
    call.with_name("050000-0007.safetensors").write_bytes(b"left over")
    for mark in calls.glob("*.json"):
        mark.unlink()
    observe(tmp_path / "half", little(graph))
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")


# What is refused ---------------------------------------------------------------------------------------------------


def test_statistics_of_another_key_are_refused_whether_finished_or_begun(tmp_path: Path, graph: Graph) -> None:
    what = little(graph)
    observe(tmp_path, what)
    for finished in (True, False):
        if not finished:
            (tmp_path / "index.json").unlink()
        before = contents(tmp_path)
        with pytest.raises(Qua2SeDiMoError, match="other weights, prompts, arguments or settings") as caught:
            observe(tmp_path, replace(what, key="other"))
        assert "Move the folder" in str(caught.value.remedy)
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [{"inputs": [5]}, {"arguments": {"num_inference_steps": 1, "guidance_scale": 1.0}}, {"seed": 1}, {"observe": 3},
     {"keep": ["proj_out_2"]}],
)  # fmt: skip
def test_other_settings_of_a_study_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = small_settings(observe=2, batch=2)
    Study.create(tmp_path / "study", made, small_pipeline()).observe()
    made.model_copy(update=changes).save(tmp_path / "study" / "study.yaml")
    with pytest.raises(Qua2SeDiMoError, match="other weights, prompts, arguments or settings") as caught:
        Study(tmp_path / "study", small_pipeline()).quantize()
    assert "qua2sedimo observe" in str(caught.value.remedy)


def test_another_model_is_refused_and_more_memory_is_not(tmp_path: Path) -> None:
    made = small_settings(observe=2, batch=2)
    digest = Study.create(tmp_path / "study", made, small_pipeline()).observe().digest
    with pytest.raises(Qua2SeDiMoError, match="other weights"):
        Study(tmp_path / "study", small_pipeline(seed=1)).observe()
    for change in ({"memory": 0.001}, {"images": 3}, {"options": "uaq-4"}, {"metrics": ["features"]}):
        made.model_copy(update=change).save(tmp_path / "study" / "study.yaml")
        assert Study(tmp_path / "study", small_pipeline()).observe().digest == digest


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flipped, cut, Path.unlink])
def test_a_damaged_moment_is_refused_by_name(tmp_path: Path, graph: Graph, damage: Callable[[Path], None]) -> None:
    what = little(graph)
    source = observe(tmp_path, what).sources[2]
    damage(tmp_path / "0002.safetensors")
    found = observe(tmp_path, what)
    found.moment(found.sources[1].name)
    for unit in source.units:
        with pytest.raises(Qua2SeDiMoError, match=r"0002\.safetensors is missing or damaged") as caught:
            found.moment(unit)
        assert "qua2sedimo observe" in str(caught.value.remedy)


@pytest.mark.parametrize("damage", [flipped, cut, Path.unlink])
def test_damaged_gradients_are_refused_by_name(tmp_path: Path, graph: Graph, damage: Callable[[Path], None]) -> None:
    what = little(graph)
    observe(tmp_path, what)
    damage(tmp_path / "gradients.safetensors")
    with pytest.raises(Qua2SeDiMoError, match=r"gradients\.safetensors is missing or damaged"):
        observe(tmp_path, what).gradient(what.units[0])


def test_a_damaged_call_is_refused_by_name(tmp_path: Path, graph: Graph) -> None:
    observe(tmp_path, little(graph))
    victim = sorted((tmp_path / "calls").glob("*.safetensors"))[1]
    cut(victim)
    calls = Statistics(tmp_path, "key", graph.layers).calls
    assert calls[0].args[0].shape == (4, 1, 8, 8)
    with pytest.raises(Qua2SeDiMoError, match=victim.name):
        calls[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}'])
def test_a_damaged_index_is_refused_by_name(tmp_path: Path, graph: Graph, content: str) -> None:
    observe(tmp_path, little(graph))
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(Qua2SeDiMoError, match=r"index\.json") as caught:
        observe(tmp_path, little(graph))
    assert caught.value.remedy


def test_a_batch_that_does_not_fit_into_memory_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Graph
) -> None:
    what = little(graph)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(what.denoiser.pos_embed, "forward", full)
    with pytest.raises(Qua2SeDiMoError, match="2 images at once do not fit into memory") as caught:
        observe(tmp_path, what)
    assert "batch" in str(caught.value.remedy)


# Layers that cannot be learned about -------------------------------------------------------------------------------

ODD = "transformer_blocks.0.ff.net.2"
SET = "row-1,row-3,uaq-2,uaq-4,kmeans_a-3"


def bank_of(what: Observation, found: Statistics, folder: Path) -> Bank:
    space = SearchSpace.of({unit: what.graph.layers[unit].shape for unit in what.units}, SET)
    return Bank.build(
        folder, space, "owner", lambda unit: weight(what, unit),
        observed=lambda unit: Observed(found.moment(unit), found.gradient(unit)),
    )  # fmt: skip


def weight(what: Observation, unit: str) -> torch.Tensor:
    return unit_weight(weight_modules(what.denoiser), what.graph.layers[unit]).half()


@contextmanager
def inputs_times(module: nn.Module, factor: float) -> Iterator[None]:
    """Within, the module sees its inputs times a factor, and passes nothing on."""
    handles = [
        module.register_forward_pre_hook(lambda m, args: (args[0] * factor,)),
        module.register_forward_hook(lambda m, args, out: torch.zeros_like(out)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounded_to_nearest(what: Observation, found: Statistics, unit: str, folder: Path) -> bool:
    """Whether every option of the unit is what it is without statistics; those of another unit are not."""
    bank = bank_of(what, found, folder)

    def plain(name: str) -> bool:
        made = [
            (bank.get(name, o), METHODS[o.method].quantize(weight(what, name), [o.number])[0])
            for o in bank.space.options[name]
        ]
        return all(torch.equal(dequantize_weight(a), dequantize_weight(b)) for a, b in made)

    assert not plain("transformer_blocks.1.ff.net.0.proj")
    return plain(unit)


@pytest.mark.parametrize(("factor", "said"), [(1e25, "not finite"), (float("nan"), "not finite"), (0.0, "all zero")])
def test_a_layer_of_useless_inputs_is_rounded_to_nearest_levels_with_a_note(
    factor: float, said: str, tmp_path: Path
) -> None:
    what = observation()
    with inputs_times(what.denoiser.get_submodule(ODD), factor):
        found = observe(tmp_path / "statistics", what)
    assert found.moment(ODD) is None
    note = found.notes()[ODD]
    assert said in note and "nearest" in note
    assert {unit for unit, text in found.notes().items() if "nearest" in text} == {ODD}
    assert rounded_to_nearest(what, found, ODD, tmp_path / "bank")


def test_a_unit_that_is_never_called_is_rounded_to_nearest_levels_with_a_note(tmp_path: Path) -> None:
    what = observation()
    what.denoiser.transformer_blocks[0].ff.forward = lambda x, *_, **__: 0 * x
    found = observe(tmp_path / "statistics", what)
    uncalled = ["transformer_blocks.0.ff.net.0.proj", ODD]
    assert found.index.uncalled == uncalled
    for unit in uncalled:
        assert found.moment(unit) is None and found.gradient(unit) is None
        assert "never called" in found.notes()[unit]
    assert rounded_to_nearest(what, found, ODD, tmp_path / "bank")
    costs = bank_of(what, found, tmp_path / "bank").costs()
    assert costs is not None
    assert all(cost > 0 for unit in what.units for cost in costs[unit].values())


def test_a_moment_of_fewer_positions_than_inputs_can_be_used_and_has_a_note(tmp_path: Path) -> None:
    what = observation(images=1, batch=1, guidance=1.0, steps=1)
    found = observe(tmp_path / "statistics", what)
    assert found.index.sources[found._place[ODD]][3] == 16  # tokens
    assert found.notes()[ODD] == "observed at 16 positions, fewer than its 128 inputs: observe more images"
    assert found.notes().keys() >= {ODD, "transformer_blocks.1.ff.net.2"}
    for errors in bank_of(what, found, tmp_path / "bank").errors.values():
        assert all(e.output is not None and 0 <= e.output < 2 for e in errors.values())


def test_an_argument_that_cannot_be_kept_is_named(tmp_path: Path, graph: Graph) -> None:
    what = little(graph)
    plain = what.denoiser.forward
    what.denoiser.forward = lambda *args, extra=None, **kwargs: plain(*args, **kwargs)
    what.denoiser.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {**kwargs, "extra": object()}), with_kwargs=True
    )
    with pytest.raises(Qua2SeDiMoError, match="an argument of the denoiser is a object"):
        observe(tmp_path, what)
