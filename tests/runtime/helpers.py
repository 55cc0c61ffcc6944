"""Tiny random denoisers, a pipeline around one, and ways to quantize them."""

from __future__ import annotations

import copy
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from tests.methods import ANY_SHAPE
from torch import nn

from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight
from qua2sedimo.runtime import dequantize, pack, quantized_module, save_packed
from qua2sedimo.runtime.table import layer_modules


def packed(model: nn.Module, folder: Path) -> Path:
    """``folder``/out: the model packed, every layer its option."""
    save_packed(model, None, mixed(model), folder / "out")
    return folder / "out"


def packed_here(model: nn.Module) -> nn.Module:
    """``model`` packed in memory, every layer but the last its option."""
    return pack(model, dict(mixed(model)))


def plain_twin(model: nn.Module) -> nn.Module:
    """A plain model of the weights that a packed one decodes."""
    return dequantize(copy.deepcopy(model))


def pixart() -> nn.Module:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        patch_size=2,
        caption_channels=24,
        use_additional_conditions=False,
    ).eval()


def dit() -> nn.Module:
    torch.manual_seed(1)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, sample_size=8, out_channels=8
    ).eval()


def unet() -> nn.Module:
    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """What one forward pass of any of the above takes, in the model's dtype."""
    torch.manual_seed(3)
    sample = torch.randn(2, 4, 8, 8, dtype=model.dtype)
    given: dict[str, Any] = {"timestep": torch.tensor([7, 500])}
    if isinstance(model, DiTTransformer2DModel):
        return {"hidden_states": sample, **given, "class_labels": torch.tensor([1, 2])}
    if isinstance(model, UNet2DConditionModel):
        return {"sample": sample, **given, "encoder_hidden_states": torch.randn(2, 5, 32, dtype=model.dtype)}
    caption = torch.randn(2, 5, 24, dtype=model.dtype)
    added = {"resolution": None, "aspect_ratio": None}
    return {"hidden_states": sample, **given, "encoder_hidden_states": caption, "added_cond_kwargs": added}


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return model(**inputs(model)).sample


def mixed(model: nn.Module) -> Iterator[tuple[str, QuantizedWeight]]:
    """Every layer but the last, methods and bit widths in turn; ranks as in :func:`decoded_rank`."""
    turns = itertools.cycle(
        (method, bits) for bits in (4, 3, 8, 2, 1) for method in map(METHODS.__getitem__, ANY_SHAPE)
    )
    for (name, module), (method, bits) in list(zip(layer_modules(model).items(), turns))[:-1]:
        number = decoded_rank(module.weight) if method.name == "lowrank" else bits
        yield name, method.quantize(module.weight, [number])[0]


def decoded_rank(weight: torch.Tensor) -> int:
    """The least rank from which on a layer decodes its weight, and so computes bit for bit as a plain layer."""
    channels, n = weight.shape[0], weight[0].numel()
    return -(-channels * n // (channels + n))


def every_layer(method: str) -> nn.ModuleDict:
    """One packed layer of every class, one in parts, and one that has thin factors if ``method`` is low rank."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {"linear": nn.Linear(16, 16), "conv1d": nn.Conv1d(8, 8, 3)}
    layers |= {"conv2d": nn.Conv2d(8, 8, 3), "conv3d": nn.Conv3d(8, 8, 2)}
    layers |= {"parts": nn.Linear(16, 16), "thin": nn.Linear(16, 16)}
    quantizer, packed_ = METHODS[method], nn.ModuleDict()
    for name, module in layers.items():
        number = (1 if name == "thin" else decoded_rank(module.weight)) if method == "lowrank" else 3
        value: Any = quantizer.quantize(module.weight, [number])[0]
        if name == "parts" and method != "lowrank":
            value = [((a, b), quantizer.quantize(module.weight[:, a:b], [3])[0]) for a, b in ((0, 6), (6, 16))]
        packed_[name] = quantized_module(module, value)
    return packed_


def inputs_of(layer: nn.Module, batch: int = 2) -> torch.Tensor:
    """Random input of one of :func:`every_layer`."""
    torch.manual_seed(1)
    axes = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
    found = next((count for kind, count in axes.items() if isinstance(layer, kind)), 0)
    return torch.randn(batch, 8, *[6] * found) if found else torch.randn(batch, 16)


def thin(model: nn.Module, rank: int = 5) -> dict[str, QuantizedWeight]:
    """Every layer at a rank low enough that Linear layers compute through their factors."""
    return {name: METHODS["lowrank"].quantize(m.weight, [rank])[0] for name, m in layer_modules(model).items()}


@torch.no_grad()
def simulate(
    model: nn.Module, values: dict[str, QuantizedWeight], folder: Path, torch_dtype: torch.dtype | None = None
) -> nn.Module:
    """What should come back: a plain checkpoint with the dequantized weights written in and all else rounded
    to 16 bits, but norms and position embeddings as they are, loaded by diffusers from ``folder``.
    """
    half = torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float16
    plain = copy.deepcopy(model).float()
    layers = {f"{name}.weight" for name in layer_modules(model)}
    for name, tensor in plain.state_dict().items():
        module = name.rpartition(".")[0]
        exact = name not in layers and any(re.search(p, module) for p in model._skip_layerwise_casting_patterns or ())
        if tensor.is_floating_point() and not exact:
            tensor.copy_(tensor.to(half))
    for name, value in values.items():
        plain.get_submodule(name).weight.copy_(dequantize_weight(value))
    plain.save_pretrained(folder)
    return type(model).from_pretrained(folder, torch_dtype=torch_dtype)


def pipeline(transformer: nn.Module) -> DiTPipeline:
    torch.manual_seed(4)
    vae = AutoencoderKL(block_out_channels=(16,), latent_channels=4, norm_num_groups=4, sample_size=8)
    return DiTPipeline(transformer, vae, DDIMScheduler(num_train_timesteps=10), id2label={0: "newt"})


def edit_header(file: Path, change: Callable[[dict[str, Any], bytes], bytes]) -> None:
    """Rewrite a safetensors file: ``change`` edits the header in place and returns the data that follows."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    data = change(header, raw[8 + length :])
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
