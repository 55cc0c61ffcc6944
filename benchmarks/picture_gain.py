"""How much a change of the guided output changes the picture: what `observe` takes for it, and what is so.

    python benchmarks/picture_gain.py [--models digits-dit …] [--images 8] [--work FOLDER]
    python benchmarks/picture_gain.py --docs      # only write the table of docs/method.md

An autoencoder's errors are weighed in the unit of the denoiser's by the gain |ΔP|² / |Δg|² (statistics/gain.py), found
by adding the same random signs to the guided output of every step. Here it stands beside the gain of whole quantized
denoisers (all layers `row` at 3, 4 and 5 bits): the squared change of their pictures, over what their options are
expected to change in the guided output. Signs that differ from step to step are shown as well.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from compensation import opened
from pages import FIGURES, write_table
from qua2sedimo import Study, zoo
from qua2sedimo.formats.files import write_json
from qua2sedimo.images.latents import observed
from qua2sedimo.options import Configuration, Option
from qua2sedimo.statistics.gain import picture_gain

ROWS = FIGURES / "picture_gain.json"
_OPTIONS = ("row-5", "row-4", "row-3")
_FIRST = 90_000  # of the images
_SHARE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "picture_gain")
    parser.add_argument("--docs", action="store_true", help="Only write the table of the page.")
    asked = parser.parse_args()
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for model in [] if asked.docs else asked.models:
        study = opened(asked, model, 0, options=",".join(_OPTIONS), observe=32)
        rows[model] = gains(study, range(_FIRST, _FIRST + asked.images))
        print(model, json.dumps(rows[model]), flush=True)
        write_json(ROWS, rows)
    head = ["| model | taken | " + " | ".join(f"`{o}`" for o in _OPTIONS) + " | signs of each step's own |"]
    body = [
        f"| {model} | {row['taken']:.2f} | " + " | ".join(f"{row[o]:.2f}" for o in _OPTIONS) + f" | {row['own']:.3f} |"
        for model, row in rows.items()
    ]
    write_table("method.md", "gain", [*head, "|---|" + "---|" * (len(_OPTIONS) + 2), *body])


def gains(study: Study, images: range) -> dict[str, float]:
    inside = study.workspace
    bank, generator = inside.bank, inside.full_precision_generator()
    vae, layers = generator.pipeline.vae, inside.space.layers
    found = {"taken": picture_gain(generator, vae, images)}

    def pictures() -> torch.Tensor:
        return torch.from_numpy(generator(images.start, images.stop)).double() * 2 - 1  # as a decoder's, −1 to 1

    plain = pictures()

    def changed() -> float:
        """The squared change of a picture, in the geometric mean, as of PSNR."""
        return float((pictures() - plain).flatten(1).square().sum(dim=1).log().mean().exp())

    for name in _OPTIONS:
        option = Option.parse(name)
        inside.switch.apply(Configuration(dict.fromkeys(layers, option)))
        change = changed()
        inside.switch.restore()
        expected = sum(bank.changes.mean_squares(layer)[option] for layer in layers)
        found[name] = change / (expected / inside.observed_generation.batch)
    chance, squares = torch.Generator().manual_seed(0), list[float]()

    def stepped(guided: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        signs = torch.randint(0, 2, guided.shape, generator=chance) * 2.0 - 1.0
        change = _SHARE * guided.square().mean().sqrt() * signs
        squares.append(float(change.square().sum()))
        return (guided + change, *args), kwargs

    with observed(generator.pipeline.scheduler, "step", before=stepped):
        change = changed()
    steps = len(squares) / -(-len(images) // generator.batch)
    found["own"] = change * len(images) * steps / sum(squares)
    return {name: float(f"{value:.4g}") for name, value in found.items()}


if __name__ == "__main__":
    main()
