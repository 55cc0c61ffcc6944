"""The application, and the arguments that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qua2sedimo import zoo
from qua2sedimo.errors import Qua2SeDiMoError
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
