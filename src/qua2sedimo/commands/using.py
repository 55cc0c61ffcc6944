"""Using an exported model: generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qua2sedimo.commands.app import Arguments, Prompts, Seed, app, pipeline_arguments


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="An exported pipeline folder (or any pipeline).", metavar="OUT")],
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    count: Annotated[int, typer.Option(help="Pictures to make.", min=1)] = 1,
    seed: Seed = 0,
    to: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("pictures"),
) -> None:
    """Paint with an exported model."""
    from PIL import Image

    from qua2sedimo.denoisers import load_pipeline
    from qua2sedimo.evaluation import Generation, Generator
    from qua2sedimo.evaluation.generate import check_arguments, check_inputs
    from qua2sedimo.evaluation.measure import to_uint8
    from qua2sedimo.files import read_json
    from qua2sedimo.terminal import console, progress

    pipeline = load_pipeline(str(folder))
    info = folder / "qua2sedimo.json"
    extra = read_json(info).get("extra", {}) if info.is_file() else {}
    inputs: list[str | int] = [int(p) if p.isdecimal() else p for p in prompt or ()]
    called = {**extra.get("arguments", {}), **pipeline_arguments(arguments)}
    check_arguments(pipeline, called)
    check_inputs(pipeline, inputs)
    total = max(count, len(inputs))
    with progress() as report:
        made = Generator(pipeline, Generation(inputs, called, seed))(
            0, total, lambda done: report(done, total, "painting")
        )
    to.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(to_uint8(made)):
        picture = Image.fromarray(image.squeeze())
        enlarge = max(1, 256 // max(picture.size))
        picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST).save(
            to / f"{i:04d}.png"
        )
    console.print(f"{total} pictures in {to}")
