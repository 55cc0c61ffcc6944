"""Small pipelines that guide by text: a random denoiser behind the text encoder of a shipped model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from diffusers import PixArtAlphaPipeline, StableDiffusionPipeline
from tests.conftest import small_pipeline, small_pixart, small_unet

from qua2sedimo.denoisers import Graph, capture_call, denoiser_of, load_pipeline, trace
from qua2sedimo.images.generate import Generation, Generator
from qua2sedimo.statistics import Observation
from qua2sedimo.zoo.pixels import PixelAutoencoder
from qua2sedimo.zoo.training.export import scheduler

PROMPTS = ["red hair, a blue top", "black hair", "green top, round glasses, blond hair"]


@cache
def _shipped(name: str) -> Any:
    return load_pipeline(name)


def pixart_pipeline(seed: int = 0) -> PixArtAlphaPipeline:
    shipped = _shipped("avatars-pixart")
    pipeline = PixArtAlphaPipeline(
        tokenizer=shipped.tokenizer, text_encoder=shipped.text_encoder, vae=PixelAutoencoder(3),
        transformer=small_pixart(seed, captions=shipped.text_encoder.config.d_model), scheduler=scheduler(),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unet_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    shipped, solver = _shipped("avatars-unet"), scheduler()
    solver.register_to_config(steps_offset=1)
    pipeline = StableDiffusionPipeline(
        tokenizer=shipped.tokenizer, text_encoder=shipped.text_encoder, vae=PixelAutoencoder(3),
        unet=small_unet(seed, captions=shipped.text_encoder.config.hidden_size), scheduler=solver,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def dit_pipeline(seed: int = 0) -> Any:
    return small_pipeline(seed, classes=1000)


PIPELINES = {"dit": dit_pipeline, "pixart": pixart_pipeline, "unet": unet_pipeline}
#: What their denoisers are called with to be guided.
INPUTS: dict[str, list[Any]] = {"dit": [1, 2, 3], "pixart": PROMPTS, "unet": PROMPTS}


def arguments(name: str, guidance: float = 3.0, steps: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
    if name == "pixart":
        found |= {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24}
    if name != "dit":
        found |= {"height": 8, "width": 8}
    return found


def observation(
    name: str = "dit",
    images: int = 3,
    batch: int = 2,
    memory: int = 10**9,
    key: str = "key",
    seed: int = 0,
    guidance: float = 3.0,
    pipeline: Any = None,
    graph: Graph | None = None,
    steps: int = 2,
) -> Observation:
    """What there is to observe of one of the pipelines."""
    pipeline = pipeline or PIPELINES[name](seed)
    generator = Generator(pipeline, Generation(INPUTS[name], arguments(name, guidance, steps), batch=batch))
    denoiser = denoiser_of(pipeline)[1]
    if graph is None:
        call = capture_call(pipeline, denoiser, generator.call_arguments([0]))
        graph = trace(denoiser, call.args, call.kwargs, parts=True, ties=True)
    return Observation(
        generator, denoiser, graph, list(graph.layers), range(50_000, 50_000 + images), memory, key
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
