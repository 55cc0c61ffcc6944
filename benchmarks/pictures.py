"""Pictures of the included models: full precision, quick choices of each size, a GGUF file, and a uniform option.

    python benchmarks/pictures.py [--models avatars-pixart …] [--count 8] [--work FOLDER]

The studies, choices and figures are those of benchmarks/compensation.py (run it first), seed 0. Every column is one
noise and one prompt, on which nothing was learned. Writes docs/images/sizes-MODEL.png, enlarged without smoothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from compensation import QUICK, ROOT, ROWS, Judge, nearest_values, opened
from qua2sedimo import zoo
from qua2sedimo.images.pictures import to_uint8
from qua2sedimo.options import Option
from qua2sedimo.study.stages.compare import OUTSIDE, as_outside

IMAGES = ROOT / "docs" / "images"
_TOOL, _UNIFORM = "GGUF Q4_K", "uaq-3"
_SIDE, _GAP, _LABEL = 96, 4, 190  # of a picture, between pictures, and of the text before them, in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(zoo.ENTRIES))
    parser.add_argument("--bits", nargs="*", type=float, default=[3.5, 3.0, 2.5, 2.0])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "compensation")
    asked = parser.parse_args()
    figures = json.loads(ROWS.read_text())
    for model in asked.models:
        near, study = opened(asked, model, 0, options="wide", rounding="nearest"), opened(asked, model, 0)
        judge, space = Judge(study, asked.count), near.workspace.space
        rows = [("full precision\n16 bits", {})]
        for bits in asked.bits:
            psnr = figures[f"{model} 0 {bits:g} {QUICK}"]["psnr"]
            rows.append((f"ours, {bits:g} bits\n{psnr:.1f} dB", study.workspace.values(study.quick(bits))))
        others = {_TOOL: as_outside(space.shapes, OUTSIDE[_TOOL]), "uniform": space.uniform(Option.parse(_UNIFORM))}
        for name, configuration in others.items():
            values, average = nearest_values(near, configuration), space.average_bits(configuration)
            psnr = Judge(study, 64)(values)["psnr"]
            rows.append((f"{name}, {average:.1f} bits\n{psnr:.1f} dB", values))
        made = []
        for _, values in rows:
            judge.write(values)
            made.append(to_uint8(study.workspace.generator(judge.images.start, judge.images.stop)))
        judge.write({})
        sheet([label for label, _ in rows], made).save(IMAGES / f"sizes-{model}.png", optimize=True)
        print(IMAGES / f"sizes-{model}.png")


def sheet(labels: list[str], pictures: list[np.ndarray]) -> Image.Image:
    """One row of pictures [count, height, width, channels] for each label."""
    step = _SIDE + _GAP
    page = Image.new("RGB", (_LABEL + step * len(pictures[0]), step * len(labels)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(17)
    for row, (label, of) in enumerate(zip(labels, pictures)):
        draw.multiline_text((8, row * step + _SIDE // 2), label, fill="black", font=font, anchor="lm", spacing=6)
        for column, picture in enumerate(of):
            enlarged = (
                Image.fromarray(picture.squeeze()).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            )
            page.paste(enlarged, (_LABEL + column * step, row * step))
    return page


if __name__ == "__main__":
    main()
