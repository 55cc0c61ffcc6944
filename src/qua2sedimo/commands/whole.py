"""All stages at once: demo and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qua2sedimo import zoo
from qua2sedimo.commands.app import (
    Arguments,
    Bits,
    Component,
    Configurations,
    Images,
    Keep,
    Model,
    Options,
    Prompts,
    Seed,
    StudyFolder,
    app,
    settings_for,
)
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.search import Budget, budget_bytes
from qua2sedimo.study.settings import StudySettings


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the study, the report and the packed model go.")] = Path("demo"),
    model: Annotated[str, typer.Option(help=f"One of {', '.join(zoo.ENTRIES)}.")] = "avatars-pixart",
    bits: Bits = 3.5,
    configurations: Configurations = 100,
    images: Images = 4,
) -> None:
    """Shrink a trained text-to-image model that comes with the package, in a few minutes, with pictures."""
    if model not in zoo.ENTRIES:
        raise Qua2SeDiMoError(f"unknown zoo model '{model}'", f"Known: {', '.join(zoo.ENTRIES)}.")
    settings = settings_for(model, None, "{}", "wide", images, None, 0)
    _everything(out / model, settings, bits, configurations, compared=64, act_bits=(8, 6))


@app.command()
def run(
    model: Model,
    study: StudyFolder,
    bits: Bits = 3.5,
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    options: Options = "wide",
    configurations: Configurations = 100,
    images: Images = 6,
    component: Component = None,
    keep: Keep = None,
    seed: Seed = 0,
) -> None:
    """All stages: trace, quantize, measure, search, fit, export, compare, report. Resumes.

    Random configurations explain; a search near the size, for up to twice as many images, finds the best.
    """
    _everything(
        study, settings_for(model, prompt, arguments, options, images, component, seed, keep), bits, configurations
    )


def _everything(
    folder: Path,
    settings: StudySettings,
    bits: float,
    configurations: int,
    compared: int = 96,
    act_bits: tuple[int, ...] = (),
) -> None:
    from qua2sedimo.formats.files import write_text
    from qua2sedimo.report import write_report
    from qua2sedimo.report.fill.study import report_data
    from qua2sedimo.study.facade import Study
    from qua2sedimo.study.stages.compare import table_json
    from qua2sedimo.terminal import comparison_table, console, progress, size

    study = Study.create(folder, settings)
    space, graph = study.workspace.space, study.workspace.graph
    budget_bytes(space, Budget(bits))
    units = f"{len(space.layers)} weight layers"
    units += " and parts" if any(graph.layers[name].span for name in space.layers) else ""
    console.print(
        f"[bold]{settings.model}[/bold]: {units}, {study.workspace.space.weights / 1e6:.2f} M "
        f"weights, {size(2 * study.workspace.space.weights)} in 16 bits → at most {bits:g} average bits"
    )
    with progress() as report:
        choice = study.run(bits, configurations, report)
        packed = study.export(choice, folder / f"packed-{bits:g}")
        rows = study.compare(choice, folder / f"packed-{bits:g}", compared, report, act_bits)
        page = write_report(report_data(study.workspace, choice, rows), folder / "report.html")
    write_text(folder / "table.json", table_json(rows))
    console.print(comparison_table(rows, console.width))
    console.print(
        f"Quantized layers on disk: {packed.quantized_bytes:,} bytes = {packed.average_bits:.4f} average bits "
        f"(found by {choice.origin})"
    )
    console.print(f"Report             {page}", soft_wrap=True)
    console.print(f"Packed checkpoint  {folder / f'packed-{bits:g}'}", soft_wrap=True)
