"""Rounding in sequence: a denoiser cut into segments computes what it did, and polishing brings it nearer to itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.conftest import MAKERS, call_of
from tests.denoisers.small import SMALL
from torch import nn
from torch.utils import _pytree as pytree

from qua2sedimo.denoisers import Graph, trace, unit_weight, weight_modules
from qua2sedimo.options import Configuration, Option
from qua2sedimo.quantizers import METHODS, Moment, QuantizedWeight, dequantize_weight
from qua2sedimo.sequential import polished, segment_of
from qua2sedimo.sequential.polish import _Polish
from qua2sedimo.sequential.segments import Replay
from qua2sedimo.statistics import RecordedCall, Source, find_sources, observe_moments, sample_name

KINDS = [*sorted(MAKERS), *sorted(SMALL)]
FEW = ["dit", "unet", "flux"]
PLENTY = 10**9
_MID = "mid_block.attentions.0.transformer_blocks.0"


def model_and_call(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    if kind in SMALL:
        return SMALL[kind]()
    model = MAKERS[kind]()
    return model, call_of(model)


@dataclass
class Case:
    """A denoiser with recorded calls, its sources and their moments; and what is written into it."""

    model: nn.Module
    graph: Graph
    calls: list[RecordedCall]
    sources: list[Source]
    moments: dict[str, Moment]
    state: dict[str, torch.Tensor]
    writes: int = 0
    original: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, call: dict[str, Any], count: int = 4) -> Case:
        graph = trace(model, (), call, parts=True, ties=True)
        sample = sample_name(model)
        calls = [RecordedCall((), {**call, sample: other}, ()) for other in noises(call[sample], count)]
        sources, uncalled = find_sources(model, graph, list(graph.layers), calls[0])
        assert uncalled == []
        found = observe_moments(model, graph, sources, calls, sample, None, 0)
        moments = {unit: moment for source, (moment, _) in zip(sources, found) for unit in source.units}
        modules = weight_modules(model)
        return cls(
            model, graph, calls, sources, moments, {n: t.clone() for n, t in model.state_dict().items()},
            original={n: unit_weight(modules, layer).clone() for n, layer in graph.layers.items()},
        )  # fmt: skip

    def rounded(self, configuration: Configuration) -> dict[str, QuantizedWeight]:
        """With compensation, each layer alone, as in a bank."""
        return {
            n: METHODS[o.method].quantize(self.original[n], [o.number], self.moments[n])[0]
            for n, o in configuration.items()
        }

    @torch.no_grad()
    def write(self, unit: str, value: QuantizedWeight | None) -> None:
        self.writes += 1
        weight = self.original[unit] if value is None else dequantize_weight(value)
        layer = self.graph.layers[unit]
        for name in (layer.module, *layer.copies):
            whole = self.model.get_submodule(name).weight
            part = whole if layer.span is None else whole[:, layer.span[0] : layer.span[1]]
            part.copy_(weight)

    @torch.no_grad()
    def outputs(self) -> torch.Tensor:
        return torch.cat([call.run(self.model)[0] for call in self.calls])

    def error_of(self, values: dict[str, QuantizedWeight], exact: torch.Tensor) -> float:
        """Relative squared error of the denoiser's output with these weights."""
        for unit in self.original:
            self.write(unit, values.get(unit))
        found = self.outputs()
        return float((found - exact).square().sum() / exact.square().sum())

    def polished(self, configuration: Configuration, memory: int = PLENTY, **more: Any) -> dict[str, QuantizedWeight]:
        return polished(
            self.model, self.graph, self.sources, sample_name(self.model), self.calls, configuration,
            self.rounded(configuration), self.original.__getitem__, self.write, memory, **more,
        )  # fmt: skip


def is_whole(model: nn.Module) -> bool:
    """Whether nothing that the polish hung onto the denoiser is left."""
    modules = list(model.modules())
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    return not hooked and not any("forward" in vars(m) for m in modules)


def noises(like: torch.Tensor, count: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(11)
    return [torch.randn(like.shape, generator=chance) for _ in range(count)]


def uniform(case: Case, option: Option) -> Configuration:
    return Configuration(dict.fromkeys(case.graph.layers, option))


@pytest.fixture(params=FEW)
def case(request: pytest.FixtureRequest) -> Case:
    return Case.of(*model_and_call(request.param))


@pytest.fixture
def dit() -> Case:
    return Case.of(*model_and_call("dit"))


# Segments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_disjoint_and_hold_every_unit(kind: str) -> None:
    model, call = model_and_call(kind)
    graph = trace(model, (), call, parts=True, ties=True)
    names = [n for layer in graph.layers.values() for n in (layer.module, *layer.copies)]
    found = {name: segment_of(name, model) for name in names}
    assert all(name == segment or name.startswith(f"{segment}.") for name, segment in found.items())
    segments = set(found.values())
    assert not any(a != b and a.startswith(f"{b}.") for a in segments for b in segments)
    assert not any(isinstance(model.get_submodule(segment), nn.ModuleList) for segment in segments)
    assert len(segments) >= 4
    blocks = [segment for segment in segments if segment.split(".")[-1].isdecimal()]
    assert len({b.split(".")[-1] for b in blocks}) >= 2 or kind in ("unet", "sdxl")


@pytest.mark.parametrize(
    ("kind", "name", "segment"),
    [
        ("dit", "transformer_blocks.1.attn1.to_q", "transformer_blocks.1"),
        ("dit", "proj_out_2", "proj_out_2"),
        ("pixart", "adaln_single.emb.timestep_embedder.linear_1", "adaln_single"),
        ("pixart", "transformer_blocks.0.ff.net.2", "transformer_blocks.0"),
        ("unet", "down_blocks.1.resnets.0.conv1", "down_blocks.1.resnets.0"),
        ("unet", f"{_MID}.attn2.to_k", _MID),
        ("unet", "conv_in", "conv_in"),
        ("sd3", "transformer_blocks.1.ff_context.net.2", "transformer_blocks.1"),
        ("flux", "single_transformer_blocks.1.proj_mlp", "single_transformer_blocks.1"),
    ],
)  # fmt: skip
def test_a_segment_is_a_block_or_a_module_outside_of_all(kind: str, name: str, segment: str) -> None:
    assert segment_of(name, model_and_call(kind)[0]) == segment


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_forward_cut_into_segments_gives_what_a_plain_one_gives(kind: str) -> None:
    model, arguments = model_and_call(kind)
    call = RecordedCall((), arguments, ())
    segments = {segment_of(name, model) for name in weight_modules(model)}
    (expected, *_), plain = call.run(model), {}
    for name in segments:
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: plain.setdefault(name, []).append(out)
        )
    call.run(model)
    for module in model.modules():
        module._forward_hooks.clear()
    replay = Replay(model, segments, call)
    assert set(replay.times) == segments
    outputs: dict[str, list[Any]] = {}
    for segment in replay.times:
        outputs[segment] = replay.run(call, outputs, segment)
        replay.finish(segment)
        assert len(outputs[segment]) == len(plain[segment]) == replay.times[segment]
        for found, wanted in zip(outputs[segment], plain[segment]):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    replay.release()
    torch.testing.assert_close(call.run(model)[0], expected, rtol=0, atol=0)
    assert is_whole(model)


@torch.no_grad()
def test_a_finished_segment_is_not_computed_and_returns_what_it_is_given(dit: Case) -> None:
    call = dit.calls[0]
    replay = Replay(dit.model, ["transformer_blocks.0", "transformer_blocks.1"], call)
    (kept,) = replay.run(call, {}, "transformer_blocks.0")
    plain = replay.run(call, {}, "transformer_blocks.1")
    replay.finish("transformer_blocks.0")
    handle = dit.model.transformer_blocks[0].ff.register_forward_pre_hook(lambda *_: pytest.fail("computed"))
    again = replay.run(call, {"transformer_blocks.0": [kept]}, "transformer_blocks.1")
    other = replay.run(call, {"transformer_blocks.0": [2 * kept]}, "transformer_blocks.1")
    handle.remove()
    replay.release()
    assert torch.equal(again[0], plain[0]) and not torch.equal(other[0], plain[0])


# Polishing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "option"), [*((kind, "row-3") for kind in KINDS), ("dit", "row-2"), ("pixart", "uaq-3"), ("sd3", "uaq-2")]
)
def test_polished_weights_bring_the_output_nearer_to_full_precision(kind: str, option: str) -> None:
    case = Case.of(*model_and_call(kind), count=2 if kind in ("hunyuan", "sdxl") else 4)
    exact, configuration = case.outputs(), uniform(case, Option.parse(option))
    rounded = case.rounded(configuration)
    before = case.error_of(rounded, exact)
    found = case.polished(configuration)
    assert case.error_of(rounded | found, exact) < before


def test_what_is_polished_has_the_options_of_the_configuration_and_nothing_else_changes(case: Case) -> None:
    choices = [Option("row", 3), Option("uaq", 4), Option("kmeans_a", 3)]
    configuration = Configuration((n, choices[i % 3]) for i, n in enumerate(case.graph.layers))
    rounded, found = case.rounded(configuration), case.polished(configuration)
    sample = sample_name(case.model)
    told = {unit for source in case.sources if not source.sees_sample(sample) for unit in source.units}
    assert told and set(found) == set(case.graph.layers) - told  # time and text have more calls than are replayed
    for unit, value in found.items():
        option, shape = configuration[unit], case.graph.layers[unit].shape
        assert (value.option, value.shape, value.nbytes) == (str(option), shape, option.nbytes(shape))
        assert value.dtype == case.original[unit].dtype
    written = {n: t.clone() for n, t in case.model.state_dict().items()}
    for unit in case.original:  # the denoiser holds the result
        case.write(unit, (rounded | found)[unit])
    assert all(torch.equal(t, written[n]) for n, t in case.model.state_dict().items())
    for unit in case.original:  # and biases, norms and embeddings are what they were
        case.write(unit, None)
    assert all(torch.equal(t, case.state[n]) for n, t in case.model.state_dict().items())
    assert is_whole(case.model)


@pytest.mark.parametrize(
    ("kind", "option"), [("dit", "row-8"), ("pixart", "uaq-8"), ("sd3", "row-8"), ("flux", "uaq-8")]
)
def test_nearly_exact_options_change_nearly_nothing(kind: str, option: str) -> None:
    case = Case.of(*model_and_call(kind))
    exact, configuration = case.outputs(), uniform(case, Option.parse(option))
    found = case.polished(configuration)
    assert case.error_of(case.rounded(configuration) | found, exact) < 1e-3
    for unit, value in found.items():
        original = case.original[unit]
        assert float((dequantize_weight(value) - original).norm() / original.norm()) < 0.05, unit


def test_the_same_is_found_twice_and_progress_ends_at_its_total(dit: Case) -> None:
    configuration = uniform(dit, Option("row", 3))
    said: list[tuple[int, int]] = []
    one = dit.polished(configuration, progress=lambda done, total: said.append((done, total)))
    two = dit.polished(configuration)
    assert one.keys() == two.keys() and all(torch.equal(one[n].codes, two[n].codes) for n in one)
    assert said[-1][0] == said[-1][1] and [done for done, _ in said] == sorted(done for done, _ in said)


@pytest.mark.parametrize("kind", FEW)
def test_outputs_that_nothing_reads_any_more_are_not_kept(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same codes as if all were kept, in less memory at a time."""
    held: list[list[int]] = []

    def run(keep_all: bool) -> dict[str, QuantizedWeight]:
        case, most = Case.of(*model_and_call(kind)), list[int]()

        def dropped(polish: _Polish, finished: str) -> None:
            if not keep_all:
                drop(polish, finished)
            kept = pytree.tree_leaves([*polish._full, *polish._quantized])
            most.append(sum(leaf.nbytes for leaf in kept if torch.is_tensor(leaf)))

        monkeypatch.setattr(_Polish, "_drop_unread", dropped)
        held.append(most)
        return case.polished(uniform(case, Option("row", 3)))

    drop = _Polish._drop_unread
    every, few = run(keep_all=True), run(keep_all=False)
    assert every.keys() == few.keys() and all(torch.equal(every[n].codes, few[n].codes) for n in every)
    assert max(held[1]) < 0.8 * max(held[0])


def test_a_block_is_read_by_the_next_and_a_skip_connection_by_the_block_that_it_leads_to() -> None:
    dit, unet = (Case.of(*model_and_call(kind)) for kind in ("dit", "unet"))

    def readers(case: Case) -> dict[str, set[str]]:
        segments = list(dict.fromkeys(segment_of(name, case.model) for name in weight_modules(case.model)))
        replay = Replay(case.model, segments, case.calls[0])
        with torch.no_grad():
            found = replay.readers(case.calls[0], list(replay.times))
        assert is_whole(case.model)
        return found

    assert readers(dit)["transformer_blocks.0"] == {"transformer_blocks.1"}
    found = readers(unet)
    assert len(found["conv_in"]) > 1, "the first block, and the last one by a skip connection"
    order = list(found)
    assert any(name.startswith("up_blocks") for name in found["conv_in"])
    assert all(order.index(name) < max(map(order.index, of)) for name, of in found.items() if of)


def test_with_little_memory_it_is_done_with_fewer_calls(dit: Case) -> None:
    configuration, exact = uniform(dit, Option("row", 2)), dit.outputs()
    before = dit.error_of(dit.rounded(configuration), exact)
    found = dit.polished(configuration, memory=1)
    assert dit.error_of(dit.rounded(configuration) | found, exact) < before


def test_layers_that_are_left_in_16_bits_stay_as_they_are(dit: Case) -> None:
    names = [n for n in dit.graph.layers if ".attn1." in n]
    configuration = Configuration(dict.fromkeys(names, Option("row", 2)))
    found = dit.polished(configuration)
    assert set(found) == set(names)
    others = {n: t for n, t in dit.model.state_dict().items() if n.removesuffix(".weight") not in names}
    assert all(torch.equal(t, dit.state[n]) for n, t in others.items())


def test_parts_of_a_layer_are_polished_side_by_side() -> None:
    case = Case.of(*model_and_call("unet"))
    parts = {n: layer for n, layer in case.graph.layers.items() if layer.span is not None}
    configuration = Configuration(
        (n, Option("row", 2 if n in parts and parts[n].span[0] == 0 else 4)) for n in case.graph.layers
    )
    found = case.polished(configuration)
    assert parts.keys() <= found.keys()
    for name, layer in parts.items():
        whole = case.model.get_submodule(layer.module).weight
        assert torch.equal(whole[:, layer.span[0] : layer.span[1]], dequantize_weight(found[name]).float())


def test_copies_of_a_layer_hold_the_same_weights() -> None:
    """Both halves of a denoiser that runs one block twice, and again in other modules of the same weights."""
    model, name = Twice(), "blocks.0.0"
    x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2))
    case = Case.of(model, {"sample": x, "timestep": torch.tensor([7])})
    assert case.graph.layers[name].copies == ("other",)
    exact, configuration = case.outputs(), uniform(case, Option("row", 3))
    rounded = case.rounded(configuration)
    before = case.error_of(rounded, exact)
    found = case.polished(configuration)
    assert set(found) == set(case.graph.layers)
    assert torch.equal(model.blocks[0][0].weight, dequantize_weight(found[name]).float())
    assert torch.equal(model.blocks[0][0].weight, model.other.weight)
    assert case.error_of(rounded | found, exact) < before
    assert is_whole(model)


class Twice(nn.Module):
    """Two blocks of two layers, of which the first block runs twice; ``other`` shares the weight of its first layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(2))
        self.other, self.out = nn.Linear(8, 16), nn.Linear(16, 4)
        self.other.weight, self.other.bias = self.blocks[0][0].weight, self.blocks[0][0].bias
        self.requires_grad_(False)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = sample + timestep / 1000
        x = x + torch.tanh(self.blocks[0](x))
        x = x + torch.tanh(self.blocks[1](x))
        x = x + torch.tanh(self.blocks[0](x))
        return self.out(torch.tanh(self.other(x)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception_the_denoiser_computes_as_before(dit: Case, error: type[BaseException]) -> None:
    exact = dit.outputs()

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise error

    with pytest.raises(error):
        dit.polished(uniform(dit, Option("row", 3)), progress=stop)
    assert is_whole(dit.model)
    for unit in dit.original:
        dit.write(unit, None)
    assert torch.equal(dit.outputs(), exact)


def test_an_error_while_weights_are_written_leaves_no_hook(dit: Case) -> None:
    plain: Callable[..., None] = dit.write

    def failing(unit: str, value: QuantizedWeight | None) -> None:
        if dit.writes > 40:
            raise MemoryError
        plain(unit, value)

    configuration = uniform(dit, Option("row", 3))
    with pytest.raises(MemoryError):
        polished(
            dit.model, dit.graph, dit.sources, sample_name(dit.model), dit.calls, configuration,
            dit.rounded(configuration), dit.original.__getitem__, failing, PLENTY,
        )  # fmt: skip
    assert is_whole(dit.model)
