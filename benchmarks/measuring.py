"""Seconds of a measured configuration beside the bare pipeline call, split in switch, generate and compare; memory.

    python benchmarks/measuring.py [--models digits-dit avatars-pixart avatars-unet] [--images 16] [--repeats 9]
                                   [--metrics psnr] [--steps 1] [--clock process] [--packed] [--work FOLDER]

Every configuration is measured between two bare calls of the pipeline for the same images; columns are medians, the
overhead is the median of the pairs, with its quartiles. One thread; seconds are the process's own CPU time unless
``--clock wall``, so that other programs of the machine count little. Each model is measured in a process of its own,
whose bank lies on disk already: the peak of its memory is that of measuring. ``--steps 1`` is the worst case: a
pipeline of one step without guidance. ``--packed`` measures from packed weights; all calls are then of packed weights,
the bare ones too, so that its totals are compared with those of a run without it. Writes
benchmarks/results/measuring.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from qua2sedimo.commands.app import settings_for
from qua2sedimo.formats.files import write_json
from qua2sedimo.measuring.trial import TimedGenerator, bare_seconds, peak_bytes, try_out
from qua2sedimo.study import Study

RESULTS = Path(__file__).parent / "results"
OPTIONS = "uaq-2,uaq-3,uaq-4,kmeans_a-3,kmeans_a-4,kmeans_c-4"
CLOCKS = {"process": time.process_time, "wall": time.perf_counter}


def study_of(asked: argparse.Namespace, model: str, folder: Path) -> Study:
    settings = settings_for(model, None, "{}", OPTIONS, asked.images, None, 0)
    arguments = dict(settings.arguments)
    if asked.steps is not None:
        arguments["num_inference_steps"] = asked.steps
        if asked.steps == 1 and "guidance_scale" in arguments:
            arguments["guidance_scale"] = 1.0
    changes = {"metrics": asked.metrics, "arguments": arguments, "packed": asked.packed}
    return Study.create(folder, settings.model_copy(update=changes))


def build(asked: argparse.Namespace, model: str, folder: Path) -> None:
    study_of(asked, model, folder).quantize()


def measured(asked: argparse.Namespace, model: str, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    torch.set_num_threads(1)
    study = study_of(asked, model, folder)
    generator = TimedGenerator(study.workspace.pipeline, study.workspace.generator.generation)
    bare_seconds(generator, range(asked.images))
    before = peak_bytes()
    switch = study.workspace.switch
    weights = sum(p.nbytes for p in study.workspace.denoiser.parameters())
    measurer = study.workspace.measurer(range(asked.images), generator, switch)
    drawn = [study.workspace.sampler(i) for i in range(asked.repeats + 1)]
    trial = try_out(measurer, generator, switch, drawn, clock=CLOCKS[asked.clock])
    denoiser = study.workspace.denoiser
    return {
        "model": model,
        "layers": len(study.workspace.space.layers),
        "images": asked.images,
        "metrics": asked.metrics,
        "batch": study.workspace.batch,
        "bare": trial.bare,
        "switch": trial.switch,
        "generate": trial.generate,
        "compare": trial.metrics,
        "total": trial.total,
        "overhead": trial.overhead,
        "quartiles": trial.quartiles,
        "weights_bytes": weights,
        "held_bytes": sum(t.nbytes for t in (*denoiser.parameters(), *denoiser.buffers())),
        "copied_bytes": switch.originals.copied_bytes,
        "peak_bytes_bare": before,
        "peak_bytes": peak_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits-dit", "avatars-pixart", "avatars-unet"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--metrics", nargs="+", default=["psnr"])
    parser.add_argument("--steps", type=int, help="Steps of an image; default: the zoo's own.")
    parser.add_argument("--packed", action="store_true", help="Measure from packed weights.")
    parser.add_argument("--clock", choices=CLOCKS, default="process")
    parser.add_argument("--work", type=Path, default=RESULTS / "measuring", help="where studies and banks are kept")
    asked = parser.parse_args()
    rows = []
    print(
        "| model | layers | bare call, s | switch, s | generate, s | compare, s | in all, s | overhead | quartiles "
        "| weights, MB | while measured, MB | second copy, MB | peak of the bare pipeline, MB | peak, MB |"
    )
    print("|---" * 14 + "|")
    for model in asked.models:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            folder = asked.work / (model if asked.steps is None else f"{model}-{asked.steps}")
            pool.apply(build, (asked, model, folder))
            row = pool.apply(measured, (asked, model, folder))
        rows.append(row)
        seconds = " | ".join(f"{row[name]:.3g}" for name in ("bare", "switch", "generate", "compare", "total"))
        low, high = row["quartiles"]
        sizes = ("weights_bytes", "held_bytes", "copied_bytes", "peak_bytes_bare", "peak_bytes")
        memory = " | ".join(f"{row[name] / 1e6:.0f}" for name in sizes)
        print(
            f"| {model} | {row['layers']} | {seconds} | {row['overhead']:.1%} | {low:.1%} to {high:.1%} | {memory} |",
            flush=True,
        )
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "measuring.json", rows)


if __name__ == "__main__":
    main()
