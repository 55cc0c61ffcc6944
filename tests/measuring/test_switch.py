"""Switching writes what changes, nothing else, and goes back to the very bits."""

from __future__ import annotations

import copy
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import call_of, small_dit
from torch import nn

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import unit_weight, weight_layers, weight_modules, weight_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.originals import Originals, checkpoint_source, compact, files_of
from qua2sedimo.measuring.switch import PackedSwitch, Switch
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight
from qua2sedimo.runtime import QuantizedLayer

HALF, BRAIN = torch.float16, torch.bfloat16
LOW, HIGH, CODEBOOK = Option("uaq", 3), Option("uaq", 4), Option("kmeans_c", 4)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    modules = weight_modules(small_dit())
    shapes = {n: tuple(m.weight.shape) for n, m in modules.items() if n != "proj_out_1"}
    space = SearchSpace.of(shapes, "uaq-3,uaq-4,kmeans_c-4")
    return Bank.build(tmp_path_factory.mktemp("bank"), space, "x", lambda n: weight_of(modules[n]).half())


@pytest.fixture
def model() -> nn.Module:
    return small_dit()


def versions(model: nn.Module) -> dict[str, int]:
    """How often each weight was written to."""
    return {name: module.weight._version for name, module in weight_modules(model).items()}


def written(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_a_configuration_puts_the_dequantized_weights_in_place(model: nn.Module, bank: Bank) -> None:
    options = (LOW, HIGH, CODEBOOK)
    configuration = Configuration((n, options[i % 3]) for i, n in enumerate(bank.space.layers))
    Switch(model, bank, weight_layers(model)).apply(configuration)
    for name, option in configuration.items():
        expected = dequantize_weight(bank.get(name, option)).float()
        assert torch.equal(model.get_submodule(name).weight, expected), name
    assert torch.equal(model.proj_out_1.weight, small_dit().proj_out_1.weight)


def test_only_layers_whose_option_changes_are_written(model: nn.Module, bank: Bank) -> None:
    switch, layers = Switch(model, bank, weight_layers(model)), bank.space.layers
    assert switch.apply(bank.space.uniform(HIGH)) == len(layers)
    before = versions(model)
    other = Configuration({**bank.space.uniform(HIGH), layers[1]: LOW, layers[4]: CODEBOOK})
    assert switch.apply(other) == 2
    assert written(before, versions(model)) == {layers[1], layers[4]}
    before = versions(model)
    assert switch.apply(other) == 0
    assert written(before, versions(model)) == set()


def test_restoring_gives_back_the_very_bits_of_every_tensor(model: nn.Module, bank: Bank) -> None:
    before = {name: t.clone() for name, t in model.state_dict().items()}
    switch = Switch(model, bank, weight_layers(model))
    for option in (HIGH, LOW, CODEBOOK):
        switch.apply(bank.space.uniform(option))
    switch.restore()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    counts = versions(model)
    switch.restore()
    assert written(counts, versions(model)) == set()


def test_after_restoring_a_configuration_is_applied_anew(model: nn.Module, bank: Bank) -> None:
    switch, uniform = Switch(model, bank, weight_layers(model)), bank.space.uniform(LOW)
    switch.apply(uniform)
    expected = model(**call_of(model)).sample
    switch.restore()
    assert not torch.equal(model(**call_of(model)).sample, expected)
    assert switch.apply(uniform) == len(bank.space.layers)
    assert torch.equal(model(**call_of(model)).sample, expected)


def test_the_way_to_a_configuration_does_not_matter(bank: Bank) -> None:
    straight, round_about = small_dit(), small_dit()
    goal = Configuration((n, (LOW, CODEBOOK)[i % 2]) for i, n in enumerate(bank.space.layers))
    Switch(straight, bank, weight_layers(straight)).apply(goal)
    switch = Switch(round_about, bank, weight_layers(round_about))
    for configuration in (bank.space.uniform(HIGH), bank.space.uniform(LOW), goal):
        switch.apply(configuration)
    expected = straight.state_dict()
    assert all(torch.equal(expected[n], t) for n, t in round_about.state_dict().items())


def test_an_option_outside_the_bank_is_made_from_the_original_weights(model: nn.Module, bank: Bank) -> None:
    option = Option("uaq", 8)
    switch = Switch(model, bank, weight_layers(model))
    switch.apply(bank.space.uniform(LOW))
    switch.apply(bank.space.uniform(option))
    for name in bank.space.layers:
        (value,) = METHODS["uaq"].quantize(small_dit().get_submodule(name).weight.half(), [8])
        assert torch.equal(model.get_submodule(name).weight, dequantize_weight(value).float()), name


def test_half_precision_denoisers_keep_their_dtype(bank: Bank, tmp_path: Path) -> None:
    model = small_dit().half()
    switch = Switch(model, bank, weight_layers(model))
    switch.apply(bank.space.uniform(HIGH))
    assert {m.weight.dtype for m in weight_modules(model).values()} == {torch.float16}
    switch.restore()
    expected = small_dit().half().state_dict()
    assert all(torch.equal(expected[n], t) for n, t in model.state_dict().items())


def test_parts_are_written_where_they_lie_and_copies_all_alike(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.twin = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)
            self.twin.load_state_dict(self.conv.state_dict())

    model = Model()
    whole = replace(weight_layers(model)["conv"], copies=("twin",))
    layers = {part.name: part for part in (whole.part(0, 4), whole.part(4, 6))}
    modules = weight_modules(model)
    space = SearchSpace.of({name: layer.shape for name, layer in layers.items()}, "uaq-3,uaq-4")
    bank = Bank.build(tmp_path, space, "x", lambda n: unit_weight(modules, layers[n]).half().contiguous())
    before = model.conv.weight.detach().clone()
    switch = Switch(model, bank, layers)
    switch.apply(Configuration({"conv[0:4]": LOW, "conv[4:6]": HIGH}))
    expected = [dequantize_weight(bank.get("conv[0:4]", LOW)), dequantize_weight(bank.get("conv[4:6]", HIGH))]
    assert torch.equal(model.conv.weight, torch.cat(expected, dim=1).float())
    assert torch.equal(model.twin.weight, model.conv.weight)
    switch.restore()
    assert torch.equal(model.conv.weight, before) and torch.equal(model.twin.weight, before)


def test_restoring_after_a_switch_that_failed_half_way_brings_every_weight_back(
    model: nn.Module, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: module.weight.detach().clone() for name, module in weight_modules(model).items()}
    switch, layers, get = Switch(model, bank, weight_layers(model)), bank.space.layers, bank.get
    others = threading.Event()

    def failing(layer: str, option: Option) -> QuantizedWeight:
        """The first unit fails once another thread is at the fourth."""
        if layer == layers[0]:
            assert others.wait(30)
            raise Qua2SeDiMoError("damaged")
        if layer == layers[3]:
            others.set()
        return get(layer, option)

    torch.set_num_threads(2)
    with monkeypatch.context() as patch:
        patch.setattr(bank, "get", failing)
        with pytest.raises(Qua2SeDiMoError, match="damaged"):
            switch.apply(bank.space.uniform(LOW))
    assert not torch.equal(model.get_submodule(layers[1]).weight, before[layers[1]])
    switch.restore()
    assert all(torch.equal(module.weight, before[name]) for name, module in weight_modules(model).items())
    assert switch.apply(bank.space.uniform(LOW)) == len(layers)


def test_layers_that_are_not_named_go_back_to_full_precision(model: nn.Module, bank: Bank) -> None:
    switch, layers = Switch(model, bank, weight_layers(model)), bank.space.layers
    switch.apply(bank.space.uniform(LOW))
    assert switch.apply(Configuration({layers[2]: LOW})) == len(layers) - 1
    expected = small_dit().state_dict()
    changed = {n for n in layers if not torch.equal(model.get_submodule(n).weight, expected[f"{n}.weight"])}
    assert changed == {layers[2]}
    with pytest.raises(Qua2SeDiMoError, match="names layer 'nowhere'"):
        switch.apply(Configuration({"nowhere": LOW}))


# One copy of the weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_originals_are_read_from_the_files_and_not_copied(bank: Bank, tmp_path: Path, stored: torch.dtype) -> None:
    small_dit().to(stored).save_pretrained(tmp_path)
    model = type(small_dit()).from_pretrained(tmp_path, torch_dtype=torch.float32)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    layers = weight_layers(model)
    switch = Switch(model, bank, layers, checkpoint_source(files_of(model), layers))
    assert switch.originals.copied_bytes == 0
    for option in (LOW, Option("uaq", 8)):  # the second is not in the bank, and made from the originals
        switch.apply(bank.space.uniform(option))
    expected = dequantize_weight(METHODS["uaq"].quantize(before["proj_out_2.weight"].half(), [8])[0]).float()
    assert torch.equal(model.proj_out_2.weight, expected)
    switch.restore()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_weight_that_differs_from_its_file_is_copied(bank: Bank, tmp_path: Path) -> None:
    small_dit().save_pretrained(tmp_path)
    model = type(small_dit()).from_pretrained(tmp_path)
    changed = bank.space.layers[1]
    with torch.no_grad():
        model.get_submodule(changed).weight.mul_(1.001)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    layers = weight_layers(model)
    switch = Switch(model, bank, layers, checkpoint_source(files_of(model), layers))
    assert switch.originals.copied_bytes == 4 * before[f"{changed}.weight"].numel()
    switch.apply(bank.space.uniform(LOW))
    switch.restore()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_file_changed_meanwhile_is_noticed(bank: Bank, tmp_path: Path) -> None:
    small_dit().save_pretrained(tmp_path)
    model = type(small_dit()).from_pretrained(tmp_path)
    layers = weight_layers(model)
    switch = Switch(model, bank, layers, checkpoint_source(files_of(model), layers))
    switch.apply(bank.space.uniform(LOW))
    small_dit(seed=1).save_pretrained(tmp_path)
    with pytest.raises(Qua2SeDiMoError, match="file has changed since"):
        switch.restore()


def test_parts_are_read_as_slices_and_missing_files_are_none(tmp_path: Path) -> None:
    small_dit().save_pretrained(tmp_path)
    model = type(small_dit()).from_pretrained(tmp_path)
    whole = weight_layers(model)["proj_out_2"]
    source = checkpoint_source(files_of(model), {"p": whole.part(3, 9), "x": replace(whole, module="absent")})
    assert source is not None
    assert torch.equal(source("p"), model.proj_out_2.weight[:, 3:9])
    assert source("x") is None
    assert files_of(small_dit()) is None and checkpoint_source(None, {}) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(width=16) | st.floats(width=32), min_size=1, max_size=6), st.booleans())
def test_copies_come_back_bit_for_bit_in_the_least_memory(values: list[float], double: bool) -> None:
    weight = torch.tensor(values, dtype=torch.float64 if double else torch.float32)
    originals = Originals({"w": weight})
    kept = originals("w")
    bits = torch.int64 if double else torch.int32
    assert kept.dtype == weight.dtype and torch.equal(kept.view(bits), weight.view(bits))
    fits = any(torch.equal(weight.to(t).to(weight.dtype).view(bits), weight.view(bits)) for t in (HALF, BRAIN))
    assert originals.copied_bytes == len(values) * (2 if fits else weight.element_size())


def test_weights_of_16_bits_in_a_pipeline_of_32_cost_half_a_copy() -> None:
    assert compact(torch.randn(50).half().float()).dtype == torch.float16
    assert compact(torch.tensor([1e30]).bfloat16().float()).dtype == torch.bfloat16
    assert compact(torch.tensor([1 / 3])).dtype == torch.float32


def packed_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_packed_weights_compute_the_same_whatever_came_before(data: st.DataObject, bank: Bank) -> None:
    """Any sequence of configurations, of some or all layers: outputs to the bit, and the very bits at the end."""
    plain, model = small_dit(), small_dit()
    layers, call = bank.space.layers, call_of(plain)
    one, other = Switch(plain, bank, weight_layers(plain)), PackedSwitch(model, bank, weight_layers(model))
    option = st.sampled_from([None, LOW, HIGH, CODEBOOK])
    for _ in range(data.draw(st.integers(1, 3))):
        drawn = {layer: data.draw(option) for layer in layers}
        configuration = Configuration((layer, o) for layer, o in drawn.items() if o is not None)
        one.apply(configuration)
        other.apply(configuration)
        assert packed_layers(model) == set(configuration)
        with torch.no_grad():
            assert torch.equal(model(**call).sample, plain(**call).sample)
    other.restore()
    assert not packed_layers(model)
    original = small_dit().state_dict()
    assert model.state_dict().keys() == original.keys()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())


def test_packed_weights_are_the_only_ones(model: nn.Module, bank: Bank) -> None:
    switch = PackedSwitch(model, bank, weight_layers(model))
    plain = sum(p.nbytes for p in model.parameters())
    switch.apply(bank.space.uniform(LOW))
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    freed = sum(4 * math.prod(shape) for shape in bank.space.shapes.values())
    assert held < plain - 0.8 * freed
    for name in bank.space.layers:  # the modules that wait hold nothing either
        assert switch._modules[name].weight.is_meta


def test_parts_and_copies_are_packed_together(tmp_path: Path) -> None:
    """A layer in two parts is packed when both are quantized, and plain while one is not; a copy goes with it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4))
    model[1].load_state_dict(model[0].state_dict())
    whole = replace(weight_layers(model)["0"], copies=("1",))
    parts = {part.name: part for part in (whole.part(0, 3), whole.part(3, 8))}
    space = SearchSpace.of({name: part.shape for name, part in parts.items()}, "uaq-3,uaq-4")
    weights = {name: model[0].weight[:, part.span[0] : part.span[1]].half() for name, part in parts.items()}  # type: ignore[index]
    made = Bank.build(tmp_path, space, "x", lambda name: weights[name])
    plain = copy.deepcopy(model)
    one, other = Switch(plain, made, parts), PackedSwitch(model, made, parts)
    first, second = space.layers
    x = torch.randn(5, 8)
    for configuration in ({first: LOW}, {first: LOW, second: HIGH}, {second: LOW}, {}):
        one.apply(configuration)
        other.apply(configuration)
        assert packed_layers(model) == ({"0", "1"} if len(configuration) == 2 else set())
        for place in (0, 1):
            assert torch.equal(model[place](x), plain[place](x))
