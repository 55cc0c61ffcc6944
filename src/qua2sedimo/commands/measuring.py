"""Making and measuring a study: init, quantize, measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qua2sedimo.commands.app import (
    Arguments,
    Batch,
    Component,
    Images,
    Keep,
    ListFile,
    Metrics,
    Model,
    Options,
    Prompts,
    Samplers,
    Seed,
    StudyFolder,
    app,
    measured_by,
    settings_for,
)
from qua2sedimo.errors import Qua2SeDiMoError

#: What a user is told whose pipeline has a safety checker.
SAFETY_CHECKER = (
    "This pipeline's safety checker is off while configurations are measured and compared: a picture it blacks out "
    "cannot be judged. It is on again in what is exported."
)


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
    sampler: Samplers = "spread",
    listed: ListFile = None,
    metric: Metrics = None,
    batch: Batch = None,
) -> None:
    """Make a study folder with its study.yaml, to be edited and measured stage by stage."""
    from qua2sedimo.images.generate import has_safety_checker
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console

    settings = settings_for(model, prompt, arguments, options, images, component, seed, keep)
    made = Study.create(study, measured_by(settings, sampler, listed, metric, batch))
    if has_safety_checker(made.workspace.pipeline):
        console.print(SAFETY_CHECKER)
    console.print(
        f"{study / 'study.yaml'}: {len(made.workspace.settings.inputs)} inputs. Next: qua2sedimo measure {study}"
    )


@app.command()
def quantize(study: StudyFolder) -> None:
    """Quantize every layer under every option (measure does it by itself); run again, it goes on."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress, size

    opened = Study(study)
    with progress() as report:
        opened.quantize(report)
    nbytes = sum(path.stat().st_size for path in (study / "bank").glob("*.safetensors"))
    options = sum(map(len, opened.workspace.space.options.values()))
    console.print(
        f"{options} options of {len(opened.workspace.space.layers)} layers in {study / 'bank'}: {size(nbytes)}. "
        f"Next: qua2sedimo measure {study}"
    )


@app.command()
def measure(
    study: StudyFolder,
    configurations: Annotated[
        int, typer.Option("--configurations", "--configs", help="Configurations to measure in all.", min=1)
    ] = 100,
    workers: Annotated[
        int | None, typer.Option(help="Measure in so many Ray processes, of this machine unless --ray is given.", min=1)
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Measure on the Ray cluster at HOST:PORT; `auto` finds this machine's.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Try also what failed before.")] = False,
) -> None:
    """Measure random configurations until there are so many; run again, it goes on."""
    from qua2sedimo.images.generate import has_safety_checker
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.measure import Workers
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    with progress() as report:
        opened.quantize(report)
        records = opened.measure(configurations, report, Workers(workers, ray), again)
    if workers is None and ray is None and has_safety_checker(opened.workspace.pipeline):
        console.print(SAFETY_CHECKER)
    failed = opened.workspace.records.failed("sample")
    if failed:
        console.print(f"{len(failed)} failed: `qua2sedimo records {study}` has their errors, --again tries them again.")
    if not records:
        raise Qua2SeDiMoError(f"{study}: no configuration could be measured; the first: {failed[0].error}")
    objective = opened.workspace.objective
    best = max(records, key=objective.gain)
    console.print(
        f"{len(records)} configurations in {study / 'records.db'}; best {objective.text} {objective.value(best):.2f} "
        f"at {best.average_bits:.2f} bits. Next: qua2sedimo fit {study}"
    )


@app.command()
def records(
    study: StudyFolder,
    form: Annotated[
        str | None, typer.Option("--format", help="csv, json or parquet; else told by the name of FILE.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it there, not to the terminal.", metavar="FILE")] = None,
) -> None:
    """Everything measured as a table: one line a configuration, with its metrics, seconds, memory and errors."""
    from qua2sedimo.records import FORMATS, Records, content, export

    kept = Records.existing(study / "records.db")
    if form is None:
        form = out.suffix.removeprefix(".") if out is not None and out.suffix.removeprefix(".") in FORMATS else "csv"
    if out is None:
        typer.echo(content(kept, form), nl=False)
    else:
        export(kept, form, out)
        typer.echo(f"{len(kept.all()) + len(kept.failed())} records in {out}")
