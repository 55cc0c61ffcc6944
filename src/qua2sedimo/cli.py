"""The command line: one command a stage. It parses, calls Study, prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError, Stopped
from qua2sedimo.settings import StudySettings

app = typer.Typer(
    help="Find out which layers of a diffusion denoiser bear low-bit weights, and pack the model accordingly.\n\n"
    "Start with `qua2sedimo demo`. For your own pipeline: `qua2sedimo run MODEL STUDY --bits 3.5 --prompt …`. "
    "A study is a folder; every stage leaves its result there, can be run alone, and goes on where it stopped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

StudyFolder = Annotated[Path, typer.Argument(help="The study folder.", metavar="STUDY")]
Bits = Annotated[float, typer.Option(help="Average bits per weight, every overhead counted.", min=1.0, max=16.0)]
Model = Annotated[
    str,
    typer.Argument(help=f"Zoo name ({', '.join(zoo.ENTRIES)}), pipeline folder, or hub name.", metavar="MODEL"),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="What to paint; repeat it. Class numbers for class-conditional."),
]
Options = Annotated[
    str,
    typer.Option(help="`wide` (2 to 8 bits where they pay), `paper` (4 and 3 bits), or a list: `uaq-4,kmeans_a-3`."),
]
Arguments = Annotated[
    str, typer.Option(help='Pipeline arguments as JSON, e.g. `{"num_inference_steps": 12}`.', metavar="JSON")
]
Candidates = Annotated[int | None, typer.Option(help="How many to measure; 8 unless told.", min=1)]
Component = Annotated[
    str | None, typer.Option(help="Which denoiser, if the pipeline has several: transformer_2, prior, …")
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Leave layers that match this pattern in 16 bits; repeat it.", metavar="PATTERN"),
]
Seed = Annotated[int, typer.Option(min=0, help="Decides noise and random configurations.")]
Configurations = Annotated[int, typer.Option(help="Random configurations to measure in all.", min=20)]
Images = Annotated[int, typer.Option(help="Images per measured configuration.", min=2)]


def settings_for(
    model: str,
    prompts: list[str] | None,
    arguments: str,
    options: str,
    images: int,
    component: str | None,
    seed: int,
    keep: list[str] | None = None,
) -> StudySettings:
    """What a new study asks for; zoo models bring their own inputs and arguments."""
    entry = zoo.ENTRIES.get(model)
    inputs: list[str | int] = [int(p) if p.isdecimal() else p for p in prompts or ()]
    given = pipeline_arguments(arguments)
    return StudySettings(
        model=model if entry or not Path(model).exists() else str(Path(model).resolve()),
        component=component,
        inputs=inputs or (list(entry.inputs) if entry else []),
        arguments={**(entry.arguments if entry else {}), **given},
        images=images,
        options=options,
        keep=keep or [],
        seed=seed,
    )


def pipeline_arguments(text: str) -> dict[str, Any]:
    """The value of --arguments: a JSON object."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        given = error
    if not isinstance(given, dict):
        raise Qua2SeDiMoError(f"--arguments is no JSON object: {text}", "Example: '{\"num_inference_steps\": 12}'")
    return given


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the study, the report and the packed model go.")] = Path("demo"),
    model: Annotated[str, typer.Option(help=f"One of {', '.join(zoo.ENTRIES)}.")] = "avatars-pixart",
    bits: Bits = 3.5,
    configurations: Configurations = 100,
    images: Images = 8,
) -> None:
    """Shrink a trained text-to-image model that comes with the package, in a few minutes, with pictures."""
    if model not in zoo.ENTRIES:
        raise Qua2SeDiMoError(f"unknown zoo model '{model}'", f"Known: {', '.join(zoo.ENTRIES)}.")
    settings = settings_for(model, None, "{}", "wide", images, None, 0)
    _everything(out / model, settings, bits, configurations, compared=64)


@app.command()
def run(
    model: Model,
    study: StudyFolder,
    bits: Bits = 3.5,
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    options: Options = "wide",
    configurations: Configurations = 100,
    images: Images = 16,
    component: Component = None,
    keep: Keep = None,
    seed: Seed = 0,
) -> None:
    """All stages: trace, quantize, measure, fit, explain, choose, export, compare, report. Resumes."""
    _everything(
        study, settings_for(model, prompt, arguments, options, images, component, seed, keep), bits, configurations
    )


def _everything(folder: Path, settings: StudySettings, bits: float, configurations: int, compared: int = 96) -> None:
    from qua2sedimo.comparison import compare, table_json
    from qua2sedimo.files import write_text
    from qua2sedimo.report import write_report
    from qua2sedimo.report.assemble import report_data
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import comparison_table, console, progress, size

    study = Study.create(folder, settings)
    study.check_budget(bits)
    units = f"{len(study.space.layers)} weight layers"
    units += " and parts" if any(study.graph.layers[name].span for name in study.space.layers) else ""
    console.print(
        f"[bold]{settings.model}[/bold]: {units}, {study.space.weights / 1e6:.2f} M "
        f"weights, {size(2 * study.space.weights)} in 16 bits → at most {bits:g} average bits"
    )
    with progress() as report:
        study.build_bank(report)
        study.measure(configurations, report)
        study.fit(progress=report)
        choice = study.choose(bits, progress=report)
        packed = study.export(bits, folder / f"packed-{bits:g}")
        rows = compare(study, choice, folder / f"packed-{bits:g}", compared, report)
        page = write_report(report_data(study, choice, rows), folder / "report.html")
    write_text(folder / "table.json", table_json(rows))
    console.print(comparison_table(rows, console.width))
    console.print(
        f"Quantized layers on disk: {packed.quantized_bytes:,} bytes = {packed.average_bits:.4f} average bits "
        f"(found by {choice.origin})"
    )
    console.print(f"Report             {page}", soft_wrap=True)
    console.print(f"Packed checkpoint  {folder / f'packed-{bits:g}'}", soft_wrap=True)


@app.command()
def init(
    model: Model,
    study: StudyFolder,
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    options: Options = "wide",
    images: Images = 16,
    component: Component = None,
    keep: Keep = None,
    seed: Seed = 0,
) -> None:
    """Make a study folder with its study.yaml, to be edited and measured stage by stage."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console

    made = Study.create(study, settings_for(model, prompt, arguments, options, images, component, seed, keep))
    console.print(f"{study / 'study.yaml'}: {len(made.settings.inputs)} inputs. Next: qua2sedimo measure {study}")


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(help="Zoo name, pipeline or denoiser folder, hub name, or config.json.", metavar="MODEL")
    ],
    options: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="Show one layer: histogram, and each option's levels, error and bytes."),
    ] = None,
    option_set: Annotated[str, typer.Option("--set", help="Which options: `wide`, `paper`, or a list.")] = "wide",
    layer: Annotated[str, typer.Option(help="Show only layers that match this pattern.")] = "*",
    component: Component = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    graph: Annotated[Path | None, typer.Option(help="Write the graph: FILE.json or FILE.svg.", metavar="FILE")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(help='The forward\'s inputs, e.g. `{"sample": {"shape": [1, 4, 64, 64]}}`.', metavar="FILE.json"),
    ] = None,
    arguments: Arguments = "{}",
) -> None:
    """Show the weight layers of a model: operation, block, shape, parts, bytes under each option; and its graph."""
    from qua2sedimo.inspection import denoiser_named, inspected, write_graph
    from qua2sedimo.layer_view import layer_options_table
    from qua2sedimo.terminal import console, inspection_notes, layer_tree

    if options is not None:
        console.print(layer_options_table(denoiser_named(model, component), options, option_set))
        return
    seen = inspected(model, option_set, component, pipeline_arguments(arguments), inputs)
    if graph is not None:
        write_graph(seen.graph, graph)
    if as_json:
        print(json.dumps(seen.document(layer)))
        return
    console.print(layer_tree(seen, layer, console.width))
    for note in inspection_notes(seen):
        console.print(note, markup=False, highlight=False)


@app.command()
def quantize(study: StudyFolder) -> None:
    """Quantize every layer under every option (measure does it by itself); run again, it goes on."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress, size

    opened = Study(study)
    with progress() as report:
        opened.build_bank(report)
    nbytes = sum(path.stat().st_size for path in (study / "bank").glob("*.safetensors"))
    options = sum(map(len, opened.space.options.values()))
    console.print(
        f"{options} options of {len(opened.space.layers)} layers in {study / 'bank'}: {size(nbytes)}. "
        f"Next: qua2sedimo measure {study}"
    )


@app.command()
def measure(study: StudyFolder, configurations: Configurations = 100) -> None:
    """Measure random configurations until there are so many; run again, it goes on."""
    from qua2sedimo.evaluation import metric
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    with progress() as report:
        opened.build_bank(report)
        records = opened.measure(configurations, report)
    objective = opened.settings.objective
    sign = 1 if metric(objective).higher_is_better else -1
    best = max(records, key=lambda r: sign * r.value(objective))
    console.print(
        f"{len(records)} configurations in {study / 'records.db'}; best {objective} {best.value(objective):.2f} "
        f"at {best.average_bits:.2f} bits. Next: qua2sedimo fit {study}"
    )


@app.command()
def fit(
    study: StudyFolder,
    loss: Annotated[str | None, typer.Option(help="srcc, lambdarank, hybrid or mse.")] = None,
) -> None:
    """Fit the predictor to the measured configurations, and say how well it ranks those it never saw."""
    from qua2sedimo.predictor import FitSettings
    from qua2sedimo.report.assemble import predictor_quality
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    chosen = FitSettings(loss=loss or opened.settings.loss, seed=opened.settings.seed)
    with progress() as report:
        ensemble = opened.fit(chosen, report)
    quality = predictor_quality(opened, ensemble)
    rows = {"predictor": quality.rank_correlation, **quality.baselines}
    for name, value in rows.items():
        console.print(
            f"{name:<26} rank correlation {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]", markup=False
        )
    if quality.noise_ceiling is not None:
        console.print(f"{'noise ceiling of labels':<26} {quality.noise_ceiling:.3f}")
    console.print(f"Next: qua2sedimo explain {study}")


@app.command()
def explain(study: StudyFolder) -> None:
    """Score every option of every layer, and print what a bit costs by operation and by block."""
    from qua2sedimo.report.assemble import findings
    from qua2sedimo.sensitivity import step_costs, strip
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, sensitivity_table

    opened = Study(study)
    scores = opened.explain()
    costs = step_costs(opened.space, scores)
    for by in ("operation", "block"):
        console.print(sensitivity_table(strip(costs, opened.graph.layers, by), by))
    for sentence in findings(opened, scores):
        console.print(sentence)
    console.print(f"Next: qua2sedimo choose {study} --bits 3.5")


@app.command()
def choose(
    study: StudyFolder,
    bits: Bits = 3.5,
    candidates: Annotated[int | None, typer.Option(help="How many to measure (8).", min=1)] = None,
) -> None:
    """Find the best configurations within the budget, measure them, and keep the best measured one."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import candidates_table, console, progress

    opened = Study(study)
    with progress() as report:
        choice = opened.choose(bits, candidates, report)
    console.print(candidates_table(choice, opened.settings.objective))
    console.print(f"Next: qua2sedimo export {study} OUT --bits {bits:g}")


@app.command()
def export(
    study: StudyFolder, out: Annotated[Path, typer.Argument(help="The folder to write.")], bits: Bits = 3.5
) -> None:
    """Write the choice as a packed pipeline that `DiffusionPipeline.from_pretrained` loads."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, size

    packed = Study(study).export(bits, out)
    console.print(
        f"{out}: {packed.weights / 1e6:.2f} M weights in {size(packed.quantized_bytes)}, {packed.average_bits:.4f} bits"
    )


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


@app.command()
def report(study: StudyFolder, bits: Bits = 3.5, images: Annotated[int, typer.Option(min=8)] = 96) -> None:
    """Write report.html: the comparison with uniform quantization, pictures, sensitivity, and the choice."""
    from qua2sedimo.comparison import compare
    from qua2sedimo.report import write_report
    from qua2sedimo.report.assemble import report_data
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import comparison_table, console, progress

    opened = Study(study)
    packed = study / f"packed-{bits:g}"
    with progress() as show:
        choice = opened.choose(bits, progress=show)
        opened.export(bits, packed)
        rows = compare(opened, choice, packed, images, show)
        page = write_report(report_data(opened, choice, rows), study / "report.html")
    console.print(comparison_table(rows, console.width))
    console.print(f"Report  {page}", soft_wrap=True)


def main() -> None:
    """Run the command line; problems with the input end it with one clear message and status 1."""
    from rich.console import Console

    errors = Console(stderr=True)
    try:
        app(standalone_mode=True)
    except Qua2SeDiMoError as error:
        errors.print(f"[bold red]error:[/bold red] {_plain(error.message)}", highlight=False, soft_wrap=True)
        if error.remedy:
            errors.print(f"[dim]→[/dim] {_plain(error.remedy)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except Stopped:
        errors.print("\nStopped. Nothing measured is lost: run the same command again to go on.")
        sys.exit(130)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
