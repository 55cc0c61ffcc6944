"""The whole job at published sizes: what each command takes in time, memory and disk.

    python benchmarks/full_size.py [--models small dit-xl pixart-xl sdxl] [--stages inspect init …] [--work FOLDER]
    python benchmarks/full_size.py --docs      # only write the tables of docs/scale.md

Pipelines of published geometry with random bf16 weights, in sharded safetensors, are written to FOLDER; then the
commands that a user types run one after the other, each in its own process: seconds, processor seconds, peak resident
memory, and what the study takes on disk. Random weights say nothing of quality. Rows are kept in
docs/figures/full_size.json as they come: stopped, it goes on, and a command that was interrupted continues its study.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pages import FIGURES, write_table
from qua2sedimo import zoo
from qua2sedimo.formats.files import write_json

ROOT = Path(__file__).parent.parent
ROWS = FIGURES / "full_size.json"
PAGE = "scale.md"
#: Models whose ratios are shown, from small to large.
GROWING = ("small", "pixart-xl", "sdxl")
_LOAD = """
import sys, torch, qua2sedimo, diffusers
pipeline = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
pipeline(**eval(sys.argv[2]), num_inference_steps=2)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "full_size")
    parser.add_argument("--docs", action="store_true", help="Only write the tables of the page.")
    asked = parser.parse_args()
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for model in [] if asked.docs else asked.models:
        folder = asked.work / model
        if not (folder / "model" / "model_index.json").is_file():
            print(f"{model}: writing random weights", flush=True)
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # this process's peak would be its children's
                pool.apply(made, (model, folder / "model"))
        commands = stages(folder, MODELS[model])
        for stage in asked.stages:
            if f"{model} {stage}" in rows:
                continue
            row = measured(commands[stage], folder / f"{stage}.log")
            row |= {"study_gb": size_of(folder / "study"), "checkpoint_gb": denoiser_size(folder / "model")}
            print(f"{model} {stage}", json.dumps(row), flush=True)
            if row["status"]:
                print((folder / f"{stage}.log").read_text()[-3000:])
                break  # later commands need this one
            rows[f"{model} {stage}"] = row
            write_json(ROWS, rows)
    write_docs(rows)


def stages(folder: Path, model: Model) -> dict[str, list[str]]:
    """The words of every command, in their order."""
    program = [sys.executable, "-m", "qua2sedimo"]
    source, study, out = (str(folder / name) for name in ("model", "study", "out"))
    arguments = {**model.arguments, "num_inference_steps": model.steps}
    init = ["init", source, study, "--images", "2", "--arguments", json.dumps(arguments)]
    init += ["--observe", str(model.observe)] if model.observe else []
    for text in model.inputs:
        init += ["--prompt", str(text)]
    given = {"class_labels": [1]} if isinstance(model.inputs[0], int) else {"prompt": str(model.inputs[0])}
    return {
        "inspect": [*program, "inspect", source],
        "init": [*program, *init],
        "plan": [*program, "plan", study],
        "observe": [*program, "observe", study],
        "quantize": [*program, "quantize", study],
        "quick": [*program, "quick", study, "--bits", "3.0"],
        "export": [*program, "export", study, out, "--bits", "3.0"],
        "load": [sys.executable, "-c", _LOAD, out, repr({**given, **model.arguments})],
        "measure": [*program, "measure", study, "--configurations", "20"],
        "fit": [*program, "fit", study],
        "search": [*program, "search", study, "--bits", "3.5", "--image-budget", "64"],
        "report": [*program, "report", study, "--bits", "3.0", "--fresh-images", "8"],
    }


def measured(words: list[str], log: Path) -> dict[str, Any]:
    """Status, seconds and peak memory of a command with its output in ``log``."""
    began = time.perf_counter()
    with log.open("w") as said:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        actions = [(os.POSIX_SPAWN_DUP2, said.fileno(), 1), (os.POSIX_SPAWN_DUP2, said.fileno(), 2)]
        process = os.posix_spawn(words[0], words, environment, file_actions=actions)
        _, status, used = os.wait4(process, 0)
    return {
        "status": os.waitstatus_to_exitcode(status), "wall_s": round(time.perf_counter() - began, 1),
        "processor_s": round(used.ru_utime + used.ru_stime, 1), "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
    }  # fmt: skip


def size_of(folder: Path) -> float:
    """Gigabytes of all files in a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9, 3)


def denoiser_size(folder: Path) -> float:
    return next(size_of(folder / name) for name in ("transformer", "unet") if (folder / name).is_dir())


# docs/scale.md -------------------------------------------------------------------------------------------------------


def write_docs(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the tables of docs/scale.md: what each command took and, of several models, how that grows with the
    weights."""
    models = [model for model in MODELS if any(key.startswith(f"{model} ") for key in rows)]
    body = []
    for stage in STAGES:
        cells = [_cell(rows.get(f"{model} {stage}")) for model in models]
        body.append(f"| `{stage}` | " + " | ".join(cells) + " |")
    sizes = {
        model: next(r["checkpoint_gb"] for key, r in rows.items() if key.startswith(f"{model} ")) for model in models
    }
    head = " | ".join(f"{model}, {size / 2:.3g} B weights" for model, size in sizes.items())
    write_table(PAGE, "stages", [f"| command | {head} |", "|---|" + "---|" * len(models), *body])
    if len([model for model in GROWING if model in sizes]) > 1:
        write_table(PAGE, "growth", _growth(rows, sizes))


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    seconds = f"{row['wall_s']:,.0f} s, {row['processor_s']:,.0f} of a core"
    return f"{seconds}; {row['peak_gb']:.1f} GB; {row['study_gb']:.2f} GB"


def _growth(rows: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, float]) -> list[str]:
    """log of the ratio of what two models took, over that of their weights: 1 is proportional."""
    pairs = list(itertools.pairwise(model for model in GROWING if model in sizes))
    lines = ["| command | " + " | ".join(f"{a} → {b}" for a, b in pairs) + " |", "|---|" + "---|" * len(pairs)]
    for stage in STAGES:
        cells = []
        for a, b in pairs:
            first, second = rows.get(f"{a} {stage}"), rows.get(f"{b} {stage}")
            if first is None or second is None:
                cells.append("")
                continue
            slopes = (
                math.log(second[name] / first[name]) / math.log(sizes[b] / sizes[a]) if first[name] > 0 else math.nan
                for name in ("processor_s", "peak_gb", "study_gb")
            )
            cells.append(", ".join(f"{slope:.2f}" if math.isfinite(slope) else "–" for slope in slopes))
        lines.append(f"| `{stage}` | " + " | ".join(cells) + " |")
    return lines


# Models --------------------------------------------------------------------------------------------------------------


class Model:
    """A published denoiser: how its pipeline is built, what it is called with, the steps of an image, and how many
    images are observed, 0 for the default."""

    def __init__(
        self, build: Callable[[], Any], inputs: list[str | int], arguments: Mapping[str, Any], steps: int = 8,
        observe: int = 0,
    ) -> None:  # fmt: skip
        self.build, self.inputs, self.arguments = build, inputs, dict(arguments)
        self.steps, self.observe = steps, observe


def made(name: str, folder: Path) -> None:
    """The pipeline with random weights, in shards of at most half a gigabyte."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # half the memory while it is built
    try:
        pipeline = MODELS[name].build()
    finally:
        torch.set_default_dtype(torch.float32)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.to(torch.bfloat16).save_pretrained(part, max_shard_size="500MB")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _autoencoder(scaling: float) -> Any:
    """The geometry of Stable Diffusion's autoencoder with a quarter of its channels."""
    from diffusers import AutoencoderKL

    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(32, 64, 128, 128), latent_channels=4,
        sample_size=256, scaling_factor=scaling,
    )  # fmt: skip


def _dit(layers: int = 28, heads: int = 16) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=layers,
        sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return DiTPipeline(transformer, _autoencoder(0.18215), DDIMScheduler(), id2label={i: str(i) for i in range(1000)})


def _pixart() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = zoo.load("avatars-pixart").tokenizer
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=1)
    )
    transformer = PixArtTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
        cross_attention_dim=1152, caption_channels=4096, sample_size=32, patch_size=2,
    )  # fmt: skip
    return PixArtAlphaPipeline(tokenizer, encoder, _autoencoder(0.18215), transformer, DPMSolverMultistepScheduler())


def _sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = zoo.load("avatars-unet").tokenizer
    first, second = (
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=width // 64, projection_dim=width,
        )
        for width in (768, 1280)
    )  # fmt: skip
    config = json.loads((ROOT / "tests" / "denoisers" / "configs" / "sdxl-base-1.0.json").read_text())
    return StableDiffusionXLPipeline(
        _autoencoder(0.13025), CLIPTextModel(first), CLIPTextModelWithProjection(second), tokenizer, tokenizer,
        UNet2DConditionModel.from_config(config), EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


_PROMPTS: list[str | int] = ["short brown hair, red top", "long black hair, blue top"]
MODELS = {
    "small": Model(partial(_dit, layers=2, heads=4), [1, 2, 3], {"guidance_scale": 1.5}, observe=24),
    "dit-xl": Model(_dit, [1, 2, 3], {"guidance_scale": 1.5}),
    "pixart-xl": Model(
        _pixart, _PROMPTS,
        {"guidance_scale": 1.5, "use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24},
    ),
    "sdxl": Model(_sdxl, _PROMPTS, {"guidance_scale": 1.5, "height": 256, "width": 256}, steps=1, observe=4),
}  # fmt: skip
STAGES = list(stages(Path(), MODELS["small"]))


if __name__ == "__main__":
    main()
