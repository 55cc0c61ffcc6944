"""Writes to the weight of a packed layer, by PEFT or by hand: refused at the layer, never without effect."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods import ANY_SHAPE
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.runtime import QuantizedLayer

from .helpers import every_layer, inputs_of, output, packed_here, plain_twin, unet

peft = pytest.importorskip("peft")

ALL = ["linear", "conv1d", "conv2d", "conv3d", "parts", "thin"]
MERGES: dict[str, Callable[[Any], object]] = {
    "merge_and_unload": lambda model: model.merge_and_unload(),
    "safe merge_and_unload": lambda model: model.merge_and_unload(safe_merge=True),
    "merge_adapter": lambda model: model.merge_adapter(),
    "safe merge_adapter": lambda model: model.merge_adapter(safe_merge=True),
}
ADAPTERS: dict[str, Callable[..., Any]] = {
    "lora": lambda names: peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False),
    "dora": lambda names: peft.LoraConfig(r=2, target_modules=names, use_dora=True, init_lora_weights=False),
    "rslora": lambda names: peft.LoraConfig(r=2, target_modules=names, use_rslora=True, init_lora_weights=False),
    "loha": lambda names: peft.LoHaConfig(r=2, target_modules=names, init_weights=False),
    "lokr": lambda names: peft.LoKrConfig(r=2, target_modules=names, init_weights=False),
    "ia3": lambda names: peft.IA3Config(target_modules=names, feedforward_modules=[], init_ia3_weights=False),
    "oft": lambda names: peft.OFTConfig(oft_block_size=4, target_modules=names, init_weights=False),
    "vera": lambda names: peft.VeraConfig(r=2, target_modules=names, init_weights=True),
}
_LINEAR_ONLY = ("oft", "vera")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace("base_model.model.", "").replace(".base_layer", ""): module.weight.clone()
            for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}  # fmt: skip


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("method", ANY_SHAPE)
def test_merging_into_a_packed_layer_is_refused_at_the_layer(method: str, merge: str) -> None:
    for name in ALL:
        model = every_layer(method)
        before = weights(model)
        adapted = peft.get_peft_model(model, ADAPTERS["lora"]([name]))
        with pytest.raises(Qua2SeDiMoError, match="packed layer cannot be changed") as refused:
            MERGES[merge](adapted)
        assert "dequantize" in refused.value.remedy
        after = weights(adapted)
        assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before), name


@pytest.mark.parametrize("kind", ADAPTERS)
def test_no_kind_of_adapter_is_merged(kind: str) -> None:
    for name in ["linear", "parts", "thin"] + ([] if kind in _LINEAR_ONLY else ["conv2d"]):
        model = every_layer("uaq")
        x = inputs_of(model[name])
        plain = copy.deepcopy(model)
        plain[name] = plain_twin(nn.ModuleDict({"0": plain[name]}))["0"]
        made = []
        for of in (model, plain):
            torch.manual_seed(1)
            adapted = peft.get_peft_model(of, ADAPTERS[kind]([name]))
            layer = adapted.base_model.model[name]
            made.append(layer(x))
        torch.testing.assert_close(*made, rtol=1e-4, atol=1e-5)
        with pytest.raises(Qua2SeDiMoError, match="packed layer cannot be changed"):
            model.get_submodule(name).merge()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_a_start_that_changes_the_weight_is_refused(start: str) -> None:
    for method in ANY_SHAPE:
        for name in ("linear", "parts", "thin"):
            model = every_layer(method)
            before = weights(model)
            with pytest.raises(Qua2SeDiMoError, match="packed layer cannot be changed"):
                peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[name], init_lora_weights=start))
            after = weights(model)
            assert all(torch.equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_model_refuses_such_a_start_and_is_as_before(start: str) -> None:
    model = packed_here(unet())
    expected, names = output(model), [name for name, _ in model.named_modules()]
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=start)
    with pytest.raises(Qua2SeDiMoError, match=f"starts by {start}"):
        model.add_adapter(config)
    assert [name for name, _ in model.named_modules()] == names
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=True))
    assert torch.equal(output(model), expected)


def test_an_adapter_is_merged_after_the_model_was_made_plain() -> None:
    model = packed_here(unet())
    model.add_adapter(ADAPTERS["lora"](["to_q", "conv1"]))
    expected = output(model)
    plain_twin_ = plain_twin(model)
    plain_twin_.fuse_lora()
    torch.testing.assert_close(output(plain_twin_), expected, rtol=1e-4, atol=1e-4)


WRITES: dict[str, Callable[[Any], object]] = {
    "data": lambda layer: setattr(layer.weight, "data", torch.zeros(layer.shape)),
    "weight": lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(layer.shape))),
    "tensor": lambda layer: setattr(layer, "weight", torch.zeros(layer.shape)),
    "copy_": lambda layer: layer.weight.copy_(torch.zeros(layer.shape)),
    "data.copy_": lambda layer: layer.weight.data.copy_(torch.zeros(layer.shape)),
    "detach.add_": lambda layer: layer.weight.detach().add_(1),
    "index": lambda layer: layer.weight.__setitem__(0, 0.0),
    "init": lambda layer: nn.init.zeros_(layer.weight),
    "reset_parameters": lambda layer: layer.reset_parameters(),
}


@pytest.mark.parametrize("write", WRITES)
def test_every_way_to_write_a_packed_weight_is_refused(write: str) -> None:
    for name, layer in every_layer("kmeans_c").items():
        before = layer.weight.clone()
        with pytest.raises(Qua2SeDiMoError, match="packed layer cannot be changed"):
            WRITES[write](layer)
        assert torch.equal(layer.weight, before), name


def test_a_packed_weight_is_read_as_any_other() -> None:
    layer = every_layer("uaq")["linear"]
    weight = layer.weight
    assert type(weight + 1) is type(weight.clone()) is torch.Tensor
    assert type(copy.deepcopy(weight)) is torch.Tensor and torch.equal(copy.deepcopy(weight), weight)
    own = nn.Parameter(layer.weight)
    with torch.no_grad():
        own.add_(1)
        own.data = own.data * 2
    assert own.requires_grad and torch.equal(own, 2 * (weight + 1))
    assert isinstance(copy.deepcopy(own), nn.Parameter)
