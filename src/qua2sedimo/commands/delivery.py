"""Writing and using what was chosen: export, recipe, generate, evaluate."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qua2sedimo.commands.app import (
    FRESH_IMAGES,
    MOST,
    Arguments,
    AsJson,
    ExportFolder,
    Prompts,
    Seed,
    StudyFolder,
    app,
    check_export,
    inputs_of,
    model_name,
    pipeline_arguments,
)
from qua2sedimo.commands.loading import with_loading
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.images.ledger import EVALUATION
from qua2sedimo.terminal.console import errors, interval, say
from qua2sedimo.terminal.progress import progress

if TYPE_CHECKING:
    from qua2sedimo.runtime import PackedSize

_PANEL = "Use"

ChoiceBits = Annotated[float, typer.Option("--bits", help="The choice for this size.", min=1.0, max=16.0)]
ChoiceName = Annotated[str | None, typer.Option("--choice", help="A choice by its file in choices/, without .json.")]
PointName = Annotated[str | None, typer.Option("--point", help="A point of the frontier by its name.")]


@app.command(rich_help_panel=_PANEL)
def export(
    study: Annotated[
        str, typer.Argument(help="The study folder; or with `--choice FILE`, a fine-tune.", metavar="STUDY|MODEL")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write; for GGUF, a file.", metavar="OUT")],
    bits: ChoiceBits = 3.5,
    choice: Annotated[
        str | None,
        typer.Option(
            help="A choice by its file in choices/, without .json. For a model that is no study, the file of a choice "
            "made for its base model: BASE/choices/3.5.json.",
        ),
    ] = None,
    point: PointName = None,
    act_bits: Annotated[
        int | None, typer.Option(help="Also round activations to this many bits in the loaded model.", min=4, max=8)
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="For a fine-tune: keep its statistics in this folder, so that an interrupted export continues.",
            metavar="FOLDER",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="`packed`, loaded after `import qua2sedimo`; `sdnq`, by diffusers alone after `pip install sdnq`; "
            "`diffusers`, plain 16-bit weights; `gguf`, a GGUF file of the denoiser with diffusers' names of tensors; "
            "`gguf-original`, with those of the model's authors, as ComfyUI expects.",
        ),
    ] = "packed",
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Let `--format sdnq` or `gguf` take more bytes than the packed layers.")
    ] = False,
) -> None:
    """Write a choice as a pipeline that `DiffusionPipeline.from_pretrained` loads.

    With a fine-tune and the file of a choice made for its base model, every layer gets the option of the base model's
    layer. The fine-tune is observed and rounded by its own statistics; nothing is searched.
    """
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.export import check_form, check_place
    from qua2sedimo.study.stages.frontier import named_choice

    check_form(form, act_bits)
    check_place(form, out)
    if choice is not None and not (Path(study) / "study.yaml").exists() and choice.endswith(".json"):
        _export_transferred(study, out, choice, work, (act_bits, form, any_size))
        return
    opened = Study(study)
    with progress() as report:
        chosen = named_choice(opened.workspace, choice, point) or opened.choose(bits, progress=report)
        packed = opened.export(chosen, out, act_bits, form, any_size)
    _say_packed(out, packed)


def _export_transferred(model: str, out: Path, choice: str, work: Path | None, delivery: tuple[Any, ...]) -> None:
    from qua2sedimo.formats.temporary import scratch_folder
    from qua2sedimo.study.stages.export import export as written
    from qua2sedimo.study.transfer import transferred

    place: Any = nullcontext(work) if work is not None else scratch_folder()
    with place as folder, progress() as report:
        study, chosen = transferred(choice, model_name(model), folder, report)
        packed = written(study, chosen, out, *delivery)
    _say_packed(out, packed)


def _say_packed(out: Path, packed: PackedSize) -> None:
    from qua2sedimo.formats.text import size_text

    size = size_text(packed.quantized_bytes)
    say(f"{out}: {packed.weights / 1e6:.2f} M weights in {size}, {packed.average_bits:.4f} bits")


_MADE_BY = "qua2sedimo generate"  # stands in every picture, so that no other one is overwritten
_HOW = {
    "torchao": "quantize_(denoiser, config_from_dict(json.load(open({python}))), filter_fn=None)",
    "gguf": 'sd-cli -M convert -m MODEL -o OUT.gguf --type f16 --tensor-type-rules "$(cat {shell})"',
}


@app.command(rich_help_panel=_PANEL)
def recipe(
    study: StudyFolder,
    out: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    form: Annotated[str, typer.Option("--format", help="torchao or gguf.")] = "torchao",
    bits: ChoiceBits = 3.5,
    choice: ChoiceName = None,
    point: PointName = None,
) -> None:
    """Write a choice of uniform options for another runtime: a bit width per layer, no weights."""
    from qua2sedimo.formats.files import check_ours, check_writable, write_text
    from qua2sedimo.runtime.recipes import FORMS
    from qua2sedimo.runtime.recipes import recipe as written
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.frontier import named_choice

    if form not in FORMS:
        raise Qua2SeDiMoError(f"unknown recipe format '{form}'", f"Known: {', '.join(FORMS)}.")
    opened = Study(study)
    check_writable(out)
    check_ours(out, FORMS[form].mark)
    with progress() as report:
        chosen = named_choice(opened.workspace, choice, point) or opened.choose(bits, progress=report)
    made = written(form, chosen.configuration, opened.workspace.graph.layers)
    write_text(out, made.text)
    say(
        f"{out}: {made.weights / 1e6:.2f} M weights, {made.average_bits:.2f} bits in {form}'s types; "
        f"{chosen.average_bits:.2f} bits here"
    )
    say(_HOW[form].format(python=repr(str(out)), shell=shlex.quote(str(out))))


@app.command(rich_help_panel=_PANEL)
@with_loading
def generate(
    folder: Annotated[Path, typer.Argument(help="The folder of an exported model, or any pipeline.", metavar="OUT")],
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    count: Annotated[int, typer.Option(help="Number of pictures.", min=1, max=MOST)] = 1,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the PNG files, or one picture: FILE.png.")] = Path("pictures"),
    *,
    loading: Loading,
) -> None:
    """Generate pictures with an exported model."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from qua2sedimo.denoisers import load_pipeline
    from qua2sedimo.formats.files import check_ours, check_writable, write_via
    from qua2sedimo.images.generate import Generation, Generator, check_arguments, check_inputs
    from qua2sedimo.images.pictures import to_uint8

    inputs, asked = inputs_of(prompt), pipeline_arguments(arguments)
    total = max(count, len(inputs))
    paths = _pictures(out, total)
    check_writable(paths[0])
    for path in paths:
        check_ours(path, _MADE_BY)
    called = {**_exported(folder).get("arguments", {}), **asked}
    if _is_export(folder):  # also its scheduler and autoencoder, which carry no checksums of their own
        check_export(folder)
    pipeline = load_pipeline(str(folder), loading)
    check_arguments(pipeline, called)
    check_inputs(pipeline, inputs)
    with progress() as report:
        made = Generator(pipeline, Generation(inputs, called, seed))(
            0, total, lambda done: report(done, total, "generating pictures")
        )
    about = PngInfo()
    about.add_text("Software", _MADE_BY)
    for path, image in zip(paths, to_uint8(made)):
        picture = Image.fromarray(image.squeeze())
        enlarge = max(1, 256 // max(picture.size))
        large = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
        write_via(path, partial(large.save, format="PNG", pnginfo=about))
    say(f"{total} pictures in {out}" if total > 1 else f"1 picture: {paths[0]}")


def _pictures(out: Path, count: int) -> list[Path]:
    """Where ``count`` pictures go: a file that ends in .png, or numbered files in a folder.

    Raises :class:`Qua2SeDiMoError` if several were to go into one file.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        return [out / f"{i:04d}.png" for i in range(count)]
    if count > 1:
        raise Qua2SeDiMoError(f"--out {out} is one picture, and {count} were asked for", "Give a folder.")
    return [out]


@app.command(rich_help_panel=_PANEL)
@with_loading
def evaluate(
    folder: ExportFolder,
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    images: Annotated[
        int, typer.Option("--fresh-images", help="Images to compare.", min=2, max=EVALUATION.size // 2)
    ] = FRESH_IMAGES,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A metric by name; repeatable. Default: psnr.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model it was made from, if OUT does not say where that is."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Compare an exported model with the model it was made from, on the same noise.

    The result is kept in OUT/evaluation.json, for the model card.
    """
    from qua2sedimo.images.generate import Generation
    from qua2sedimo.measuring.exported import check_comparable, evaluate_export
    from qua2sedimo.metrics import catalogue as known

    names = list(dict.fromkeys(metric or ["psnr"]))
    known.check_metrics(names)
    check_export(folder)
    extra = _exported(folder)
    called = {**extra.get("arguments", {}), **pipeline_arguments(arguments)}
    model = base or _base_of(folder, extra.get("model", ""))
    generation = Generation(inputs_of(prompt) or extra.get("inputs", []), called, seed)
    check_comparable(names, model)
    with progress() as report:
        found = evaluate_export(folder, model, generation, names, images, report, loading)
    if as_json:
        print(found.model_dump_json())
    else:
        for name in names:
            entry, estimate = known.metric(name), found.metrics[name]
            ends = f"95 %: {interval(estimate, '.4g')}, " if interval(estimate) else ""
            better = "higher" if entry.higher_is_better else "lower"
            unit = f" {entry.unit}" if entry.unit else ""
            say(f"{name}: {estimate.value:.4g}{unit} ({ends}{better} is better)")
    try:
        found.keep(folder)
    except Qua2SeDiMoError as error:  # the result has been printed: a read-only folder is no failure
        errors.print(f"The result was not kept for the model card: {error.message}", soft_wrap=True)


def _exported(folder: Path) -> dict[str, Any]:
    """What an export keeps of its study: model, inputs, arguments; empty for any other pipeline."""
    from qua2sedimo.runtime.contents import read_info

    return dict(read_info(folder).get("extra", {})) if _is_export(folder) else {}


def _is_export(folder: Path) -> bool:
    from qua2sedimo.runtime.contents import INFO

    return (folder / INFO).is_file()


def _base_of(folder: Path, stated: str) -> str:
    """Where the model that an export was made from is; an error if the export states none, or only a folder's name."""
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
