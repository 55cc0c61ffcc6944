"""The application, and the arguments that several commands share."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.study.settings import SAMPLERS, StudySettings

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
Samplers = Annotated[
    str,
    typer.Option(
        help="Which configurations: `spread` (average bits evenly spread, layers drawn one by one), `stratified` (also "
        "reaches the corners: whole blocks low, one method only), `paper`, `singles` (one layer at a time), `list` "
        "(yours: --list)."
    ),
]
ListFile = Annotated[
    Path | None,
    typer.Option("--list", help="JSON or YAML list of {layer pattern: option}, for --sampler list.", metavar="FILE"),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="What to measure by; repeat it. psnr and features unless told; see `qua2sedimo metrics`."
    ),
]
Batch = Annotated[
    int | None, typer.Option(help="Images a call of the pipeline; as many as fit, at most 16, unless told.", min=1)
]
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


def measured_by(
    settings: StudySettings, sampler: str, listed: Path | None, metrics: list[str] | None, batch: int | None
) -> StudySettings:
    """The settings with what --sampler, --list, --metric and --batch ask for.

    Raises :class:`Qua2SeDiMoError` naming the option if a sampler or metric is unknown, or a list is missing or idle.
    """
    if sampler not in SAMPLERS:
        near = difflib.get_close_matches(sampler, SAMPLERS, 1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise Qua2SeDiMoError(f"--sampler: unknown sampler '{sampler}'", f"{hint}Known: {', '.join(SAMPLERS)}.")
    if (sampler == "list") != (listed is not None):
        raise Qua2SeDiMoError("--sampler list and --list FILE belong together", "Give both, or neither.")
    changes: dict[str, Any] = {"sampler": sampler}
    if listed is not None:
        changes["configurations"] = str(listed.resolve())
    if metrics:
        changes["metrics"] = list(dict.fromkeys(metrics))
    if batch is not None:
        changes["batch"] = batch
    return StudySettings.model_validate({**settings.model_dump(), **changes})


def pipeline_arguments(text: str) -> dict[str, Any]:
    """The value of --arguments: a JSON object."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        given = error
    if not isinstance(given, dict):
        raise Qua2SeDiMoError(f"--arguments is no JSON object: {text}", "Example: '{\"num_inference_steps\": 12}'")
    return given
