"""LoRA adapters beside packed layers: applied, weighed, saved, loaded, trained; never fused."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import QuantizedLayer, dequantize, save_packed, set_activation_bits
from qua2sedimo.runtime.table import layer_modules

from .helpers import inputs, output, packed, thin, unet

peft = pytest.importorskip("peft")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return packed(unet(), tmp_path_factory.mktemp("packed"))


@pytest.fixture
def loaded(folder) -> nn.Module:
    return type(unet()).from_pretrained(folder, torch_dtype=torch.float32)


def adapter() -> "peft.LoraConfig":
    return peft.LoraConfig(r=2, lora_alpha=2, target_modules=ATTENTION, init_lora_weights=False)


def test_a_lora_adapter_works_unfused_and_is_refused_fused(loaded) -> None:
    expected = output(loaded)
    loaded.add_adapter(adapter())
    adapted = output(loaded)
    assert not torch.equal(adapted, expected)
    with pytest.raises(Qua2SeDiMoError, match="cannot be fused"):
        loaded.fuse_lora()
    loaded.disable_adapters()
    assert torch.equal(output(loaded), expected)
    loaded.enable_adapters()
    assert torch.equal(output(loaded), adapted)


def test_an_adapter_computes_what_it_does_beside_plain_layers_of_the_same_weights(loaded, folder) -> None:
    plain = dequantize(type(loaded).from_pretrained(folder, torch_dtype=torch.float32))
    for model in (loaded, plain):
        torch.manual_seed(8)
        model.add_adapter(adapter())
    assert torch.equal(output(loaded), output(plain))


def test_an_adapter_is_saved_and_loaded_by_itself(loaded, folder, tmp_path) -> None:
    plain = output(loaded)
    loaded.add_adapter(adapter(), adapter_name="ink")
    expected = output(loaded)
    loaded.save_lora_adapter(tmp_path, adapter_name="ink", weight_name="ink.safetensors")
    names = load_file(tmp_path / "ink.safetensors").keys()
    assert names and all("lora_" in name for name in names)  # no packed weight is in it
    other = type(loaded).from_pretrained(folder, torch_dtype=torch.float32)
    other.load_lora_adapter(str(tmp_path), prefix=None, adapter_name="ink", weight_name="ink.safetensors")
    assert torch.equal(output(other), expected)
    other.set_adapters("ink", 0.5)
    assert not torch.equal(output(other), expected)
    other.unload_lora()
    assert torch.equal(output(other), plain)
    assert any(isinstance(module, QuantizedLayer) for module in other.modules())


def test_an_adapter_beside_low_rank_layers_computes_and_learns(tmp_path) -> None:
    model = unet().half().float()
    save_packed(model, None, thin(model, 3), tmp_path / "out")
    loaded, plain = (type(model).from_pretrained(tmp_path / "out", torch_dtype=torch.float32) for _ in range(2))
    dequantize(plain)
    grads = []
    for adapted in (loaded, plain):
        torch.manual_seed(8)
        adapted.requires_grad_(False)
        adapted.add_adapter(adapter())
        adapted(**inputs(adapted)).sample.norm().backward()
        grads.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    torch.testing.assert_close(output(loaded), output(plain), rtol=1e-3, atol=1e-4)
    assert grads[0].keys() == grads[1].keys() and all(g.norm() > 0 for g in grads[0].values())
    for name, grad in grads[0].items():
        assert (grad - grads[1][name]).norm() < 1e-2 * grad.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("act_bits", [None, 8])
def test_an_adapter_learns_and_packed_weights_do_not(loaded, checkpointing: bool, act_bits: int | None) -> None:
    set_activation_bits(loaded, act_bits)
    loaded.requires_grad_(False)
    loaded.add_adapter(adapter())
    if checkpointing:
        loaded.enable_gradient_checkpointing()
        loaded.train()
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    learning = [parameter for parameter in loaded.parameters() if parameter.requires_grad]
    steps = torch.optim.SGD(learning, lr=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        loaded(**inputs(loaded)).sample.norm().backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in learning)
    steps.step()
    changed = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_asking_for_gradients_leaves_packed_tensors_out(loaded) -> None:
    loaded.requires_grad_(False)
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded.requires_grad_(True)
    loaded(**inputs(loaded)).sample.norm().backward()
    learning = {name for name, p in loaded.named_parameters() if p.grad is not None}
    assert learning == {name for name, p in loaded.named_parameters() if p.is_floating_point()}
    names = [name for name, _ in loaded.named_modules()]
    with pytest.raises(Qua2SeDiMoError, match=r"proj_in' is packed, and modules_to_save"):
        loaded.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["proj_in"]))
    assert [name for name, _ in loaded.named_modules()] == names
    loaded.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["conv_out"]))
    assert torch.isfinite(output(loaded)).all()


@pytest.fixture
def packed_pipeline(tmp_path) -> Iterator[StableDiffusionPipeline]:
    """A text-to-image pipeline whose attention is packed."""
    pipe = zoo.load("avatars-unet")
    layers = {name: module for name, module in layer_modules(pipe.unet).items() if ".attn" in name}
    values = {name: METHODS["uaq"].quantize(module.weight.detach(), [4])[0] for name, module in layers.items()}
    save_packed(pipe, None, values, tmp_path / "out")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    yield loaded


def test_a_pipeline_loads_adapters_and_refuses_to_fuse_them(packed_pipeline, tmp_path) -> None:
    pipe = packed_pipeline

    def picture() -> torch.Tensor:
        chance = torch.Generator().manual_seed(1)
        return torch.from_numpy(pipe("red hair", num_inference_steps=1, generator=chance, output_type="np").images)

    plain = picture()
    pipe.unet.add_adapter(adapter(), adapter_name="ink")
    layers = peft.utils.get_peft_model_state_dict(pipe.unet, adapter_name="ink")
    expected = picture()
    assert not torch.equal(expected, plain)
    pipe.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    pipe.unload_lora_weights()
    assert torch.equal(picture(), plain)
    pipe.load_lora_weights(tmp_path / "lora", adapter_name="ink")
    torch.testing.assert_close(picture(), expected)
    with pytest.raises(Qua2SeDiMoError, match="cannot be fused"):
        pipe.fuse_lora()
    pipe.set_adapters("ink", 0.0)
    torch.testing.assert_close(picture(), plain)
    pipe.delete_adapters("ink")
    assert torch.equal(picture(), plain)
