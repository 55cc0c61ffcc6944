"""Using an exported model, or a choice elsewhere: generate, evaluate, recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qua2sedimo.commands.app import Arguments, Prompts, Seed, StudyFolder, app, pipeline_arguments
from qua2sedimo.errors import Qua2SeDiMoError


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
    from qua2sedimo.formats.files import read_json
    from qua2sedimo.images.generate import Generation, Generator, check_arguments, check_inputs
    from qua2sedimo.images.pictures import to_uint8
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


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="An exported pipeline folder.", metavar="OUT")],
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    images: Annotated[int, typer.Option(help="Pictures to compare.", min=2)] = 16,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="A metric by name; repeat it (psnr).")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model it came from, needed where that was a folder and OUT lies in no study."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Measure an exported model against the pictures of the model it came from, on the same noise.

    The result is kept in OUT/evaluation.json, for the model card.
    """
    from qua2sedimo.formats.files import read_json
    from qua2sedimo.images.generate import Generation
    from qua2sedimo.measuring.exported import evaluate_export
    from qua2sedimo.metrics import catalogue as known
    from qua2sedimo.terminal import console, errors, progress

    names = list(dict.fromkeys(metric or ["psnr"]))
    known.check_metrics(names)
    info = folder / "qua2sedimo.json"
    if not info.is_file():
        raise Qua2SeDiMoError(f"{folder} is not an exported model", "Export one: qua2sedimo export STUDY OUT.")
    extra = read_json(info).get("extra", {})
    model = base or _base_of(folder, extra.get("model", ""))
    given: list[str | int] = [int(p) if p.isdecimal() else p for p in prompt or ()]
    called = {**extra.get("arguments", {}), **pipeline_arguments(arguments)}
    generation = Generation(given or extra.get("inputs", []), called, seed)
    with progress() as report:
        found = evaluate_export(folder, model, generation, names, images, report)
    for name in names:
        entry, estimate = known.metric(name), found.metrics[name]
        console.print(
            f"{name}: {estimate.value:.4g} {entry.unit} (95 %: {estimate.low:.4g} to {estimate.high:.4g}), "
            f"{'higher' if entry.higher_is_better else 'lower'} is better"
        )
    try:
        found.keep(folder)
    except Qua2SeDiMoError as error:  # what was measured has been said: a folder that is only read is no failure
        errors.print(f"The result was not kept for the model card: {error.message}", soft_wrap=True)


def _base_of(folder: Path, stated: str) -> str:
    """Where the model that an export came from is; an error if the export states none, or only a folder's name."""
    from qua2sedimo import zoo
    from qua2sedimo.report.fill.base_model import place_of_base

    model = place_of_base(folder, stated)
    if not model:
        raise Qua2SeDiMoError(f"{folder} does not say which model it came from", "Name it with --base.")
    if model not in zoo.ENTRIES and "/" not in model and not Path(model).exists():
        raise Qua2SeDiMoError(
            f"{folder} came from a folder '{model}' and does not say where it is", "Name it with --base."
        )
    return model


_HOW = {
    "torchao": "quantize_(denoiser, config_from_dict(json.load(open('{out}'))), filter_fn=None)",
    "gguf": 'sd-cli -M convert -m MODEL -o OUT.gguf --type f16 --tensor-type-rules "$(cat {out})"',
}


@app.command()
def recipe(
    study: StudyFolder,
    out: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    form: Annotated[str, typer.Option("--format", help="torchao or gguf.")] = "torchao",
    bits: Annotated[float, typer.Option(help="The choice of so many average bits.", min=1.0, max=16.0)] = 3.5,
    choice: Annotated[str | None, typer.Option(help="A choice by its file's name in choices/, without .json.")] = None,
    point: Annotated[str | None, typer.Option(help="A point of the frontier by its name.")] = None,
) -> None:
    """Write a choice of uniform options as a recipe for another runtime: a width for each layer, no weights."""
    from qua2sedimo.formats.files import write_text
    from qua2sedimo.runtime.recipes import FORMS
    from qua2sedimo.runtime.recipes import recipe as written
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.frontier import named_choice
    from qua2sedimo.terminal import console

    if form not in FORMS:
        raise Qua2SeDiMoError(f"unknown recipe format '{form}'", f"Known: {', '.join(FORMS)}.")
    opened = Study(study)
    chosen = named_choice(opened.workspace, choice, point) or opened.choose(bits)
    made = written(form, chosen.configuration, opened.workspace.graph.layers)
    write_text(out, made.text)
    console.print(
        f"{out}: {made.weights / 1e6:.2f} M weights, {made.average_bits:.2f} bits in {form}'s types; "
        f"{chosen.average_bits:.2f} bits here",
        soft_wrap=True,
    )
    console.print(_HOW[form].format(out=out), soft_wrap=True, markup=False, highlight=False)
