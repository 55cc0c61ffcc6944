"""Evaluate an exported zoo model on held-out pictures and draw its contact sheet.

    python -m qua2sedimo.zoo.training.evaluate avatars-pixart --data DIR --sheet SHEET.png [--images 500]

Prints JSON: the judge's accuracy on real pictures, its accuracy on generated pictures, and the Fréchet distance between
generated and held-out pictures in the judge's features, with the distance between two sets of real pictures.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from qua2sedimo.system.quiet import quiet
from qua2sedimo.zoo import ENTRIES, load
from qua2sedimo.zoo.captions import ATTRIBUTES, phrases
from qua2sedimo.zoo.judge import Judge, answers, load_judge, score
from qua2sedimo.zoo.training import data, judge

_BATCH = 50


def held_out_inputs(pictures: str, folder: Path, count: int) -> list[str | int]:
    """Complete captions or class labels of the first ``count`` held-out pictures."""
    if pictures == "avatars":
        avatars = data.avatars(folder)
        return [", ".join(phrases(avatars.attributes(at))) for at in range(count)]
    return [int(label) for label in data.digits(folder).labels[:count]]


def generate(pipeline: Any, inputs: Sequence[str | int], arguments: dict[str, Any]) -> np.ndarray:
    """Generate one picture per input, picture i with seed i: uint8 [n, side, side, channels]."""
    parts = []
    for start in range(0, len(inputs), _BATCH):
        some = list(inputs[start : start + _BATCH])
        noise = [torch.Generator().manual_seed(start + at) for at in range(len(some))]
        parts.append(pipeline(some, generator=noise, output_type="np", **arguments).images)
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


@torch.inference_mode()
def features(critic: Judge, images: np.ndarray) -> np.ndarray:
    """The judge's last hidden layer: float64 [n, 128]."""
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return critic.body(pictures).double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of features [n, d] and [m, d]; biased upward for few pictures."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0))
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * roots.sum())


def distances(generated: np.ndarray, real: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """(generated to real, real to real) Fréchet distances, averaged over random halves of the real features."""
    chance, half = np.random.default_rng(0), len(real) // 2
    orders = [chance.permutation(len(real)) for _ in range(splits)]
    halves = [(real[at[:half]], real[at[half:]]) for at in orders]
    made = float(np.mean([frechet_distance(generated, second) for _, second in halves]))
    return made, float(np.mean([frechet_distance(*pair) for pair in halves]))


def contact_sheet(images: np.ndarray, captions: Sequence[str], columns: int, zoom: int) -> Image.Image:
    """A grid of pictures enlarged without smoothing, each with its caption below."""
    font = ImageFont.load_default(10)
    side, gap = images.shape[1] * zoom, 8
    lines = [textwrap.wrap(caption, max(1, side // 5)) for caption in captions]
    room = 13 * max(len(some) for some in lines) + gap
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + room) + gap), "white")
    pen = ImageDraw.Draw(page)
    for at, (image, some) in enumerate(zip(images, lines, strict=True)):
        x, y = gap + at % columns * (side + gap), gap + at // columns * (side + room)
        page.paste(Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + side + 1), "\n".join(some), fill="#333", font=font, spacing=2)
    return page


def main() -> None:
    """Evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(ENTRIES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    entry = ENTRIES[chosen.name]
    arguments = dict(entry.arguments)
    arguments["guidance_scale"] = chosen.guidance or arguments["guidance_scale"]
    arguments["num_inference_steps"] = chosen.steps or arguments["num_inference_steps"]
    with quiet():
        pipeline = load(chosen.name)
    pipeline.set_progress_bar_config(disable=True)
    inputs = held_out_inputs(entry.pictures, chosen.data, chosen.images)
    began = time.perf_counter()
    made = generate(pipeline, inputs, arguments)
    seconds = time.perf_counter() - began

    path = entry.set_folder / "judge.safetensors"
    critic = load_judge(path, entry.pictures)
    real, truth = (part[: data.HELD_OUT] for part in judge.examples(entry.pictures, chosen.data))
    names = list(ATTRIBUTES) if entry.pictures == "avatars" else ["digit"]
    on_real, on_made = answers(critic, real), answers(critic, made)
    reals, generated = features(critic, real), features(critic, made)
    mean, spread = reals.mean(axis=0), reals.std(axis=0)
    reals, generated = (reals - mean) / spread, (generated - mean) / spread
    made_apart, real_apart = distances(generated, reals)
    shown = truth[: len(made)]
    report = {
        "model": chosen.name,
        "arguments": arguments,
        "images": len(made),
        "seconds per image": round(seconds / len(made), 4),
        "judge on held-out real pictures": {
            name: round(float((on_real[q] == truth[:, q])[truth[:, q] >= 0].mean()), 4) for q, name in enumerate(names)
        },
        "generated pictures right": {
            name: round(float((on_made[q] == shown[:, q])[shown[:, q] >= 0].mean()), 4) for q, name in enumerate(names)
        },
        "mean share right": round(float(score(path, entry.pictures, made, inputs).mean()), 4),
        "Fréchet distance": round(made_apart, 3),
        "Fréchet distance of real to real": round(real_apart, 3),
    }
    print(json.dumps(report, indent=1, ensure_ascii=False))
    if chosen.sheet:
        chosen.sheet.parent.mkdir(parents=True, exist_ok=True)
        if entry.pictures == "avatars":
            asked = [str(prompt) for prompt in entry.inputs[:24]]
            page = contact_sheet(generate(pipeline, asked, arguments), asked, columns=8, zoom=6)
        else:
            labels = [row for _ in range(6) for row in range(10)]
            page = contact_sheet(generate(pipeline, labels, arguments), [str(x) for x in labels], columns=10, zoom=2)
        page.save(chosen.sheet, optimize=True)


if __name__ == "__main__":
    main()
