"""Switching writes what changes, nothing else, and goes back to the very bits."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.conftest import call_of, small_dit
from torch import nn

from qua2sedimo.bank import Bank
from qua2sedimo.denoisers import unit_weight, weight_layers, weight_modules, weight_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.evaluation import Switch
from qua2sedimo.options import Configuration, Option, SearchSpace
from qua2sedimo.quantizers import METHODS, QuantizedWeight

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
        expected = bank.get(name, option).dequantize().float()
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
        assert torch.equal(model.get_submodule(name).weight, value.dequantize().float()), name


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
    expected = [bank.get("conv[0:4]", LOW).dequantize(), bank.get("conv[4:6]", HIGH).dequantize()]
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
