"""Offloading moves packed weights too: bytes in memory are counted at every call of a layer.

The device is the CPU. accelerate puts what is offloaded on the meta device, so the bytes of tensors that hold memory
are those that a GPU would hold.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.hooks.group_offloading import ModuleGroup
from tests.methods import ANY_SHAPE
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.quantizers import METHODS
from qua2sedimo.runtime import QuantizedLayer, pack, set_activation_bits
from qua2sedimo.runtime.table import layer_modules

from .helpers import output, packed, packed_here, plain_twin, unet


def pipeline(model: nn.Module) -> StableDiffusionPipeline:
    empty = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=10, steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(**empty, unet=model, scheduler=scheduler, requires_safety_checker=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return packed(unet(), tmp_path_factory.mktemp("packed"))


@pytest.fixture(params=["loaded", "packed in memory", "plain"])
def model(request, folder) -> nn.Module:
    if request.param == "loaded":
        return type(unet()).from_pretrained(folder, torch_dtype=torch.float32)
    return packed_here(unet()) if request.param == "packed in memory" else plain_twin(packed_here(unet()))


def held(model: nn.Module) -> int:
    """Bytes of the model's tensors that hold memory."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.untyped_storage().nbytes() for t in tensors.values() if not t.is_meta)


@contextmanager
def counted(model: nn.Module, monkeypatch) -> Iterator[list[int]]:
    """What the model holds whenever a weight layer computes, in bytes."""
    seen: list[int] = []
    with monkeypatch.context() as patch:
        for place, name in ((nn.functional, "linear"), (nn.Conv2d, "_conv_forward")):
            patch.setattr(place, name, _noting(getattr(place, name), lambda: seen.append(held(model))))
        yield seen


def _noting(compute: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        note()
        return compute(*given, **named)

    return noted


@pytest.fixture(autouse=True)
def the_cpu_as_a_device(monkeypatch) -> None:
    """accelerate cannot tell "cpu:0", as diffusers names it, from "cpu"."""
    offload = accelerate.cpu_offload
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda model, _, **given: offload(model, torch.device("cpu"), **given)
    )


def largest(model: nn.Module) -> int:
    return max(held(m) for m in model.modules() if next(m.children(), None) is None)


def test_sequential_offloading_holds_one_layer_at_a_time(model: nn.Module, monkeypatch) -> None:
    expected, whole, most = output(model), held(model), largest(model)
    pipe = pipeline(model)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert held(model) < most
    with counted(model, monkeypatch) as seen:
        assert torch.equal(output(model), expected)
    assert len(seen) >= len(layer_modules(model)) and 0 < max(seen) <= most < whole / 5
    pipe.remove_all_hooks()
    assert torch.equal(output(model), expected)


def test_every_tensor_of_a_packed_model_moves_with_it(folder) -> None:
    """Model offloading calls `model.to(device)`."""
    model = type(unet()).from_pretrained(folder, torch_dtype=torch.float32)
    model.to("meta")
    assert held(model) == 0


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_loads_a_group_at_a_time(
    model: nn.Module, tmp_path, monkeypatch, kind: str, disk: bool
) -> None:
    """Groups are counted between onload and offload: here both devices are the CPU."""
    expected, whole, loaded = output(model), held(model), set()
    monkeypatch.setattr(ModuleGroup, "onload_", _around(ModuleGroup.onload_, loaded.add))
    monkeypatch.setattr(
        ModuleGroup, "offload_", _around(ModuleGroup.offload_, lambda g: g in loaded and loaded.remove(g))
    )
    given: dict[str, Any] = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    given |= {"offload_to_disk_path": str(tmp_path)} if disk else {}
    model.enable_group_offload(torch.device("cpu"), torch.device("cpu"), kind, **given)
    seen: list[int] = []
    for place, name in ((nn.functional, "linear"), (nn.Conv2d, "_conv_forward")):
        note = _noting(getattr(place, name), lambda: seen.append(sum(map(of_group, loaded))))
        monkeypatch.setattr(place, name, note)
    assert torch.equal(output(model), expected)
    assert min(seen) > 0 and max(seen) < whole / (1 if kind == "block_level" else 5)


def of_group(group: ModuleGroup) -> int:
    return sum(map(held, group.modules)) + sum(t.nbytes for t in (*group.parameters, *group.buffers))


def _around(method: Callable[..., Any], note: Callable[[Any], object]) -> Callable[..., Any]:
    def noted(group: Any, *given: Any) -> Any:
        note(group)
        return method(group, *given)

    return noted


def test_a_device_map_and_accelerate_by_itself_move_packed_weights(model: nn.Module, monkeypatch) -> None:
    """Both leave buffers on the device unless told otherwise."""
    expected, most = output(model), largest(model)
    accelerate.big_modeling.cpu_offload(model, torch.device("cpu"))
    with counted(model, monkeypatch) as seen:
        assert torch.equal(output(model), expected)
    assert 0 < max(seen) <= most


def test_an_offloaded_model_is_not_saved_but_told_how(folder, tmp_path) -> None:
    model = type(unet()).from_pretrained(folder, torch_dtype=torch.float32)
    pipe = pipeline(model)
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(Qua2SeDiMoError, match="is offloaded") as refused:
        model.save_pretrained(tmp_path / "out")
    assert "remove_all_hooks" in refused.value.remedy and not (tmp_path / "out").exists()
    pipe.remove_all_hooks()
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(output(type(model).from_pretrained(tmp_path / "out")), output(model))


@pytest.mark.parametrize("method", ANY_SHAPE)
def test_every_method_with_and_without_8_bit_activations(method: str) -> None:
    model = unet()
    number = 3 if method != "lowrank" else 5
    values = {n: METHODS[method].quantize(m.weight, [number])[0] for n, m in layer_modules(model).items()}
    pack(model, values)
    for bits in (None, 8):
        set_activation_bits(model, bits)
        expected = output(model)
        pipe = pipeline(model)
        pipe.enable_sequential_cpu_offload(device="cpu")
        assert torch.equal(output(model), expected)
        assert all(t.is_meta for t in model.buffers() if t.numel())
        pipe.remove_all_hooks()


def test_layers_that_are_copies_are_offloaded(tmp_path) -> None:
    model = unet()
    first, second = "down_blocks.1.resnets.0.time_emb_proj", "up_blocks.0.resnets.0.time_emb_proj"
    modules = layer_modules(model)
    modules[second].load_state_dict(modules[first].state_dict())
    values = {n: METHODS["row"].quantize(m.weight, [3])[0] for n, m in modules.items() if n != second}
    pack(model, values, {first: (second,)})
    expected = output(model)
    pipe = pipeline(model)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert torch.equal(output(model), expected)
    pipe.remove_all_hooks()
    assert isinstance(model.get_submodule(second), QuantizedLayer) and torch.equal(output(model), expected)
