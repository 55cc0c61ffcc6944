"""The application, and the arguments that several commands share."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from qua2sedimo import zoo
from qua2sedimo.denoisers.loading import Loading
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import parse_json
from qua2sedimo.images.ledger import LEARNING, OBSERVED
from qua2sedimo.study.settings import (
    MOST_SEED,
    SAMPLERS,
    Effort,
    RoundingName,
    StudySettings,
    Target,
    usual_effort,
)

if TYPE_CHECKING:
    from qua2sedimo.measuring.run import Workers

app = typer.Typer(
    help="Find out which layers of a diffusion model tolerate low-bit weights, and pack the model accordingly.\n\n"
    "Start with `qua2sedimo demo`. For your own pipeline: `qua2sedimo run MODEL STUDY --bits 3.5 --prompt …`. "
    "A study is a folder: every stage keeps its result there, can be run alone, and resumes where it stopped.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"qua2sedimo {version('qua2sedimo')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


#: The most configurations or images that a command takes: years of work, where nothing else limits them.
MOST = 1_000_000
_MOST_DIGITS = 18  # of a class number

#: Printed for pipelines with a safety checker.
SAFETY_CHECKER = (
    "This pipeline's safety checker is off while configurations are measured and compared: a picture it blacks out "
    "cannot be judged. It is on again in what is exported."
)

StudyFolder = Annotated[Path, typer.Argument(help="The study folder.", metavar="STUDY")]
ExportFolder = Annotated[Path, typer.Argument(help="The folder of an exported model.", metavar="OUT")]
Bits = Annotated[float, typer.Option(help="Average bits per weight, all overhead included.", min=1.0, max=16.0)]
Model = Annotated[
    str,
    typer.Argument(
        help=f"Shipped model ({', '.join(zoo.ENTRIES)}), pipeline folder, .safetensors or .gguf file, or hub name.",
        metavar="MODEL",
    ),
]
StudyPrompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        help="A prompt, or a class number for class-conditional models; repeatable. Without any: varied ones.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="A prompt, or a class number for class-conditional models; repeatable."),
]
Options = Annotated[
    str,
    typer.Option(
        help="Candidate options: `default` (1 to 6 bits, and low rank), `wide` (the paper's methods at 2 to 8 bits), "
        "`paper` (its six), `gguf` (the types of GGUF files), or a list: `uaq-4,kmeans_a-3`."
    ),
]
Rounding = Annotated[
    str | None,
    typer.Option(
        help="`compensated`, by statistics of the model's own activations, or `nearest`. Default: compensated, but "
        "nearest for `--options paper`."
    ),
]
Observe = Annotated[
    int | None,
    typer.Option(help="Images that statistics for rounding are taken from.", min=1, max=OBSERVED.size),
]
For = Annotated[
    str | None,
    typer.Option("--for", help="Try only what another program's format holds: `sdnq` or `gguf`.", metavar="PROGRAM"),
]
Arguments = Annotated[
    str, typer.Option(help='Pipeline arguments as JSON, e.g. `{"num_inference_steps": 12}`.', metavar="JSON")
]
Component = Annotated[
    list[str] | None,
    typer.Option(
        help="Which denoiser, if the pipeline has several: transformer_2, prior, …; or a text encoder, or the "
        "autoencoder, vae; repeatable for several that share the budget."
    ),
]
Packed = Annotated[
    bool,
    typer.Option("--packed", help="Measure configurations from packed weights: slower, in less memory."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Leave layers that match this pattern in 16 bits; repeatable.", metavar="PATTERN"),
]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the noise and of random configurations.")]
Samplers = Annotated[
    str,
    typer.Option(
        help="Which configurations to measure: `spread` (average bits evenly spread, layers drawn independently), "
        "`stratified` (also extremes: whole blocks low, a single method), `paper`, `singles` (one layer at a time), "
        "`near` (near the frontier, by what statistics expect), `list` (those of --list)."
    ),
]
ListFile = Annotated[
    Path | None,
    typer.Option(
        "--list",
        help="JSON or YAML list of {layer pattern: option}, for --sampler list.",
        metavar="FILE",
        exists=True,
        dir_okay=False,
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="A metric to measure; repeatable. See `qua2sedimo metrics`. Default: psnr."),
]
Batch = Annotated[
    int | None,
    typer.Option(help="Images per pipeline call. Default: as many as fit, at most 16.", min=1, max=LEARNING.size),
]
Configurations = Annotated[int, typer.Option(help="Random configurations to measure in total.", min=20, max=MOST)]
Images = Annotated[int, typer.Option(help="Images that each configuration is measured on.", min=2, max=LEARNING.size)]
#: The default of :data:`Images`, and that of images which judge: ``--fresh-images``.
USUAL_IMAGES, FRESH_IMAGES = 8, 64
WorkerCount = Annotated[
    int | None,
    typer.Option("--workers", help="Work in this many Ray processes, here or on --ray's cluster.", min=1, max=10_000),
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", help="Work on the Ray cluster at this address; `auto` finds it.", metavar="HOST:PORT"),
]
Efforts = Annotated[
    str | None,
    typer.Option(
        help="`quick` (by statistics, in minutes), `search` (also measures candidates), `paper` (by the predictor). "
        "Default: `quick`; `search` with --configurations, or with nearest rounding.",
    ),
]
#: Of commands that measure configurations only with more effort.
AlsoMeasured = Annotated[
    int | None,
    typer.Option(
        "--configurations",
        help="Also measure so many random configurations, which show what layers cost in pictures (100 if the effort "
        "is not `quick`).",
        min=20,
        max=MOST,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def effort_of(text: str | None, configurations: int | None, settings: StudySettings) -> Effort:
    """The effort that --effort and --configurations ask for; raises :class:`Qua2SeDiMoError` if it is unknown, or if
    they contradict each other."""
    if text is None:
        return usual_effort(settings, configurations)
    if text not in get_args(Effort):
        raise Qua2SeDiMoError(f"--effort: '{text}' is unknown", f"Known: {', '.join(get_args(Effort))}.")
    if text == "quick" and configurations is not None:
        raise Qua2SeDiMoError(
            f"--effort quick measures no random configurations, --configurations asks for {configurations}",
            "Leave one of them out.",
        )
    return cast(Effort, text)


def aimed_at(settings: StudySettings, program: str | None) -> StudySettings:
    """The settings with the value of --for; raises :class:`Qua2SeDiMoError` if the program is unknown."""
    if program is None:
        return settings
    if program not in get_args(Target):
        raise Qua2SeDiMoError(f"--for: '{program}' is unknown", f"Known: {', '.join(get_args(Target))}.")
    return settings.model_copy(update={"target": program})


def workers_of(count: int | None, address: str | None) -> Workers:
    """Who measures, from --workers and --ray; raises :class:`Qua2SeDiMoError` if they cannot be used here."""
    from qua2sedimo.measuring.run import Workers
    from qua2sedimo.measuring.workers.cluster import check_workers

    workers = Workers(count, address)
    if not workers.here:
        check_workers(address)
    return workers


def check_export(folder: Path) -> None:
    """Raise :class:`Qua2SeDiMoError` unless ``folder`` is an exported model with all its files as they were, which a
    command can load."""
    from qua2sedimo.runtime.contents import check_contents
    from qua2sedimo.runtime.own import refuse_own_code

    check_contents(folder)
    refuse_own_code(folder)


def inputs_of(prompts: list[str] | None) -> list[str | int]:
    """Prompts as they are, class numbers as numbers."""
    return [int(p) if p.isdecimal() and len(p) <= _MOST_DIGITS else p for p in prompts or ()]


def settings_for(
    model: str,
    prompts: list[str] | None,
    arguments: str,
    options: str,
    images: int,
    component: list[str] | None,
    seed: int,
    keep: list[str] | None = None,
    rounding: str | None = None,
    observe: int | None = None,
    loading: Loading = Loading(),
    packed: bool = False,
) -> StudySettings:
    """The settings of a new study; shipped models bring their own inputs and arguments."""
    entry = zoo.ENTRIES.get(model)
    given = pipeline_arguments(arguments)
    if rounding not in (None, *get_args(RoundingName)):
        raise Qua2SeDiMoError(f"--rounding: '{rounding}' is unknown", f"Known: {', '.join(get_args(RoundingName))}.")
    changed: dict[str, Any] = {} if observe is None else {"observe": observe}
    return StudySettings(
        model=model_name(model),
        component=component[0] if component and len(component) == 1 else component or None,
        inputs=inputs_of(prompts) or (list(entry.inputs) if entry else []),
        arguments={**(entry.arguments if entry else {}), **given},
        images=images,
        options=options,
        rounding=rounding,  # type: ignore[arg-type]
        **asdict(loading),
        packed=packed,
        **changed,
        keep=keep or [],
        seed=seed,
    )


def measured_by(
    settings: StudySettings, sampler: str, listed: Path | None, metrics: list[str] | None, batch: int | None
) -> StudySettings:
    """The settings with the values of --sampler, --list, --metric and --batch.

    Raises :class:`Qua2SeDiMoError` naming the option if a sampler or metric is unknown, or if only one of
    ``--sampler list`` and ``--list`` is given.
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


def model_name(model: str) -> str:
    """A model as study.yaml names it: folders and files by their full path.

    Links are not followed: a file in the hub's cache is a link to one without a name.
    """
    path = Path(model).expanduser()
    return model if model in zoo.ENTRIES or not path.exists() else str(path.absolute())


def pipeline_arguments(text: str) -> dict[str, Any]:
    """The value of --arguments: a JSON object."""
    try:
        given = parse_json(text)
    except ValueError as error:
        given = error
    if not isinstance(given, dict):
        raise Qua2SeDiMoError(f"--arguments is no JSON object: {text[:80]}", "Example: '{\"num_inference_steps\": 12}'")
    return given


def onward(study: Path, compensates: bool) -> str:
    """What may follow once a study is made: a choice by statistics, which needs no measurement, or measuring."""
    from qua2sedimo.formats.text import command

    measure = command("measure", study)
    if not compensates:
        return f"Next: {measure}"
    return f"Next: {command('quick', study, '--bits', 3.5)}, or measure images: {measure}"
