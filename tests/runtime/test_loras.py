"""LoRA files on pipelines with a packed denoiser, as people load them."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from tests.denoisers.coverage.check import built, outputs
from torch import nn

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.runtime import QuantizedLayer, pack
from qua2sedimo.runtime.table import layer_modules

from .helpers import mixed, plain_twin

peft = pytest.importorskip("peft")

#: Pipeline class, the name of its denoiser, the denoiser's class.
PIPELINES = {
    "SD 1.5": ("StableDiffusionPipeline", "unet", "UNet2DConditionModel"),
    "SDXL": ("StableDiffusionXLPipeline", "unet", "UNet2DConditionModel"),
    "SD 3": ("StableDiffusion3Pipeline", "transformer", "SD3Transformer2DModel"),
    "Flux": ("FluxPipeline", "transformer", "FluxTransformer2DModel"),
    "Wan": ("WanPipeline", "transformer", "WanTransformer3DModel"),
    "Sana": ("SanaPipeline", "transformer", "SanaTransformer2DModel"),
    "Lumina 2": ("Lumina2Pipeline", "transformer", "Lumina2Transformer2DModel"),
    "Qwen": ("QwenImagePipeline", "transformer", "QwenImageTransformer2DModel"),
    "LTX": ("LTXPipeline", "transformer", "LTXVideoTransformer3DModel"),
    "CogVideoX": ("CogVideoXPipeline", "transformer", "CogVideoXTransformer3DModel"),
}


class Around:
    """A pipeline around one packed denoiser, everything else left out, and LoRA files for it."""

    def __init__(self, which: str, folder: Any) -> None:
        pipeline, self.component, self.kind = PIPELINES[which]
        self.folder = folder
        model, _ = built(self.kind)
        self.model = pack(model.eval(), dict(mixed(model)))
        self.pipe = self._pipeline(pipeline, self.model)
        self.twin = plain_twin(self.model)
        self.shapes = {
            n: tuple(m.weight.shape) for n, m in layer_modules(self.twin).items() if isinstance(m, nn.Linear)
        }
        self.beside = self._pipeline(pipeline, self.twin)

    def _pipeline(self, name: str, model: nn.Module) -> Any:
        cls = getattr(diffusers, name)
        return cls(**dict.fromkeys(cls._get_signature_keys(cls)[0]) | {self.component: model} | _EXTRA.get(name, {}))

    def file(self, name: str, seed: int, rank: int = 2, wider: Callable[[str], int] = lambda _: 0) -> str:
        """A LoRA of every attention projection and of ``wider`` layers, which get that many more input channels."""
        chance = torch.Generator().manual_seed(seed)
        state = {}
        for layer, (out, width) in self.shapes.items():
            more = wider(layer)
            if more or layer.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                start = f"{self.component}.{layer}"
                state[f"{start}.lora_A.weight"] = torch.randn(rank, width + more, generator=chance) / width**0.5
                state[f"{start}.lora_B.weight"] = torch.randn(out, rank, generator=chance) / 2
        assert state
        save_file(state, self.folder / f"{name}.safetensors")
        return f"{name}.safetensors"

    def both(self, act: Callable[[Any], Any]) -> None:
        """Do the same with the pipeline of the packed model and that of its plain twin."""
        for pipe in (self.pipe, self.beside):
            act(pipe)

    def load(self, file: str, **given: Any) -> None:
        self.both(lambda pipe: pipe.load_lora_weights(self.folder, weight_name=file, **given))

    def agree(self) -> list[torch.Tensor]:
        """What the packed model gives; its plain twin must give the same."""
        found, expected = outputs(self.model, self.kind), outputs(self.twin, self.kind)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        return found


_EXTRA: dict[str, dict[str, Any]] = {
    "FluxPipeline": {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()},
    "StableDiffusionPipeline": {"scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)},
}


@pytest.fixture(params=list(PIPELINES))
def around(request, tmp_path) -> Around:
    return Around(request.param, tmp_path)


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_adapters_are_loaded_weighted_swapped_and_unloaded(around: Around) -> None:
    plain = around.agree()
    around.load(around.file("ink", 1), adapter_name="ink")
    ink = around.agree()
    assert not same(ink, plain)
    around.load(around.file("chalk", 2, rank=3), adapter_name="chalk")
    around.both(lambda pipe: pipe.set_adapters(["ink", "chalk"], [0.7, 0.3]))
    mixed_ = around.agree()
    assert not same(mixed_, ink)
    around.both(lambda pipe: pipe.delete_adapters("chalk"))
    around.both(lambda pipe: pipe.set_adapters("ink"))
    assert same(around.agree(), ink)
    around.load(around.file("wash", 3), adapter_name="ink", hotswap=True)
    assert not same(around.agree(), ink)
    with pytest.raises(Qua2SeDiMoError, match="cannot be fused"):
        around.pipe.fuse_lora()
    around.pipe.unload_lora_weights()
    assert same(outputs(around.model, around.kind), plain)
    assert any(isinstance(module, QuantizedLayer) for module in around.model.modules())
    around.model.save_pretrained(around.folder / "saved")


@pytest.fixture
def control(tmp_path) -> Around:
    """A Flux pipeline whose control LoRA doubles the channels of the first layer."""
    PIPELINES["Flux control"] = ("FluxControlPipeline", "transformer", "FluxTransformer2DModel")
    try:
        return Around("Flux control", tmp_path)
    finally:
        del PIPELINES["Flux control"]


def called(model: nn.Module, channels: int) -> torch.Tensor:
    given = built("FluxTransformer2DModel")[1]
    tokens = given["hidden_states"]
    given["hidden_states"] = torch.cat([tokens, tokens.flip(1)], dim=2)[..., :channels]
    with torch.no_grad():
        return model(**given).sample


def test_a_control_lora_that_widens_a_packed_layer(control: Around) -> None:
    model, twin = control.model, control.twin
    plain, width = called(model, 8), model.x_embedder.in_features
    assert width == 8 and isinstance(model.x_embedder, QuantizedLayer)
    control.load(control.file("depth", 1, wider=lambda layer: 8 * (layer == "x_embedder")), adapter_name="depth")
    depth = called(model, 16)
    torch.testing.assert_close(depth, called(twin, 16), rtol=1e-4, atol=1e-5)
    control.load(control.file("ink", 2, wider=lambda layer: 0), adapter_name="ink")
    control.both(lambda pipe: pipe.set_adapters(["depth", "ink"], [0.5, 1.0]))
    torch.testing.assert_close(called(model, 16), called(twin, 16), rtol=1e-4, atol=1e-5)
    control.pipe.unload_lora_weights()
    with pytest.raises(
        Qua2SeDiMoError, match=r"'x_embedder\.weight' has shape \[32, 16\] instead of \[32, 8\]"
    ) as refused:
        model.save_pretrained(control.folder / "wide")
    assert "reset_to_overwritten_params" in refused.value.remedy
    control.pipe.unload_lora_weights(reset_to_overwritten_params=True)
    assert torch.equal(called(model, 8), plain)
    model.save_pretrained(control.folder / "saved")
    assert torch.equal(called(type(model).from_pretrained(control.folder / "saved"), 8), plain)


def test_a_lora_for_a_layer_that_a_model_lacks_leaves_the_model_as_it_was(control: Around) -> None:
    plain = called(control.model, 8)
    file = control.file("bad", 1)
    state = {f"transformer.{n}.lora_{side}.weight": torch.ones(2, 3) for n in ("proj_out",) for side in "AB"}
    save_file(state, control.folder / file)
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        control.pipe.load_lora_weights(control.folder, weight_name=file)
    assert torch.equal(called(control.model, 8), plain)
