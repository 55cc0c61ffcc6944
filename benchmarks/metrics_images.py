"""Images of random configurations, kept for benchmarks/metrics.py: made once, in chunks that survive a stop.

    python benchmarks/metrics_images.py [--model digits-dit] [--configurations 12] [--images 2000] [--steps 5]
                                        [--guidance 1] [--work FOLDER]

Fills FOLDER/metrics-MODEL with full precision ("full"), full precision of other noise ("other") and one folder a
configuration. All sources grow together, chunk by chunk, so that a run that is stopped leaves equally many images of
each; the same command goes on. Five steps, half of what the shipped models are called with, halve the time; no
guidance (1) halves it again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from qua2sedimo import Study, zoo
from qua2sedimo.formats.files import write_json, write_via
from qua2sedimo.images.generate import Generator
from qua2sedimo.images.latents import final_latents
from qua2sedimo.sampling import sample
from qua2sedimo.study.settings import StudySettings

RESULTS = Path(__file__).parent / "results"
CHUNK = 100
BATCH = 50
#: Where the noise of the set metrics' references begins; none of it is any configuration's.
OTHER = 200_000
OTHERS = 500


def arguments_of(model: str, steps: int, guidance: float | None) -> dict[str, object]:
    """What the pipeline is called with: the shipped model's own arguments but the steps and, if given, the guidance."""
    asked = {"num_inference_steps": steps} | ({} if guidance is None else {"guidance_scale": guidance})
    return {**zoo.ENTRIES[model].arguments, **asked}


def study_of(folder: Path, model: str, arguments: dict[str, object]) -> Study:
    """The study whose configurations are measured, with the shipped model's own inputs."""
    inputs = list(zoo.ENTRIES[model].inputs)
    settings = StudySettings(model=model, inputs=inputs, arguments=arguments, batch=BATCH, metrics=["psnr"])
    return Study.create(folder / "study", settings)


def missing(folder: Path, configurations: int, images: int) -> list[tuple[int, str]]:
    """(chunk, source) in the order in which they are made."""
    sources = ["full", "other", *(f"{number:03d}" for number in range(configurations))]
    wanted = [(chunk, source) for chunk in range(-(-images // CHUNK)) for source in sources]
    wanted = [(chunk, source) for chunk, source in wanted if source != "other" or chunk * CHUNK < OTHERS]
    return [(chunk, source) for chunk, source in wanted if not chunk_path(folder, source, chunk).exists()]


def chunk_path(folder: Path, source: str, chunk: int) -> Path:
    return folder / source / f"{chunk:03d}.safetensors"


def make(study: Study, generator: Generator, folder: Path, chunk: int, source: str) -> None:
    if source in ("full", "other"):
        study.workspace.switch.restore()
    else:
        s = study.workspace.settings
        study.workspace.switch.apply(sample(study.workspace.space, s.sampler, s.seed, int(source), s.bits_range))
    start = chunk * CHUNK + (OTHER if source == "other" else 0)
    with final_latents(study.workspace.pipeline) as latents:
        images = generator(start, start + CHUNK)
    content = {"images": images, "latents": np.ascontiguousarray(latents.array(CHUNK))}
    write_via(chunk_path(folder, source, chunk), lambda path: save_file(content, path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-dit")
    parser.add_argument("--configurations", type=int, default=12)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--guidance", type=float, help="the shipped model's own unless told")
    parser.add_argument("--work", type=Path, default=RESULTS, help="where the images are kept")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after about so long")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    folder = given.work / f"metrics-{given.model}"
    waiting = missing(folder, given.configurations, given.images)
    if not waiting:
        return
    arguments = arguments_of(given.model, given.steps, given.guidance)
    study = study_of(folder, given.model, arguments)
    bits = {
        f"{n:03d}": study.workspace.space.average_bits(
            sample(
                study.workspace.space,
                study.workspace.settings.sampler,
                study.workspace.settings.seed,
                n,
                study.workspace.settings.bits_range,
            )
        )
        for n in range(given.configurations)
    }
    write_json(folder / "about.json", {"model": given.model, "arguments": arguments, "average_bits": bits})
    for done, (chunk, source) in enumerate(waiting):
        if time.perf_counter() - began > 60 * given.minutes:
            print(f"stopped; {len(waiting) - done} of {len(waiting)} chunks to go")
            return
        make(study, study.workspace.generator, folder, chunk, source)
        print(
            f"{time.perf_counter() - began:7.0f} s  images {chunk * CHUNK} to {(chunk + 1) * CHUNK} of {source}",
            flush=True,
        )


if __name__ == "__main__":
    main()
