"""What can be known before anything is measured: inspect, metrics, plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from qua2sedimo.commands.app import MOST, Arguments, AsJson, Component, StudyFolder, app, pipeline_arguments
from qua2sedimo.commands.loading import with_loading
from qua2sedimo.denoisers.loading import Loading, OffloadName
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.terminal.console import console, say
from qua2sedimo.terminal.progress import progress

if TYPE_CHECKING:
    from rich.table import Table

_PANEL = "Inspect"


@app.command(rich_help_panel=_PANEL)
@with_loading
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="Shipped model, pipeline or denoiser folder, .safetensors file, hub name, or config.json; with "
            "--details also a study.",
            metavar="MODEL",
        ),
    ],
    options: Annotated[
        str, typer.Option(help="Options to show: `default`, `wide`, `paper`, `gguf`, or a list.")
    ] = "default",
    details: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="Show one layer: histogram, and levels, error and bytes of each option."),
    ] = None,
    layer: Annotated[str, typer.Option(help="Show only layers that match this pattern.")] = "*",
    component: Component = None,
    as_json: AsJson = False,
    graph: Annotated[
        Path | None, typer.Option(help="Also write the graph, to FILE.json or FILE.svg.", metavar="FILE")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(help='Inputs of the denoiser, e.g. `{"sample": {"shape": [1, 4, 64, 64]}}`.', metavar="FILE.json"),
    ] = None,
    arguments: Arguments = "{}",
    *,
    loading: Loading,
) -> None:
    """List the weight layers of a model: operation, shape, and bytes under each option."""
    from qua2sedimo.inspection import check_graph_file, denoiser_named, inspected, write_graph
    from qua2sedimo.terminal.layer_options import histogram_width, layer_options_table
    from qua2sedimo.terminal.layers import inspection_notes, layer_tree

    if graph is not None:
        check_graph_file(graph)
    if component and len(component) > 1:
        raise Qua2SeDiMoError("inspect shows one denoiser at a time", "Give --component once.")
    shown = component[0] if component else None
    if details is not None and (Path(model) / "study.yaml").is_file():
        console.print(_of_study(Path(model), details))
        return
    if details is not None:
        width = histogram_width(console.width)
        console.print(layer_options_table(denoiser_named(model, shown, loading), details, options, width))
        return
    seen = inspected(model, options, shown, pipeline_arguments(arguments), inputs, loading)
    if graph is not None:
        write_graph(seen.graph, graph)
    if as_json:
        print(json.dumps(seen.document(layer)))
        return
    console.print(layer_tree(seen, layer, console.width))
    for note in inspection_notes(seen):
        console.print(note)


def _of_study(study: Path, layer: str) -> Table:
    """The options of a study's layer, rounded as the study does, with the errors of its output."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal.layer_options import histogram_width, weight_table

    inside = Study(study).workspace
    if layer not in inside.candidates.layers:
        raise Qua2SeDiMoError(f"{study} quantizes no layer '{layer}'", "`qua2sedimo inspect MODEL` lists the layers.")
    moment = inside.observed(layer).moment
    return weight_table(
        layer, inside.weight(layer), inside.candidates.options[layer], histogram_width(console.width), moment
    )


@app.command(rich_help_panel=_PANEL)
def metrics(
    name: Annotated[
        str | None,
        typer.Argument(help="Explain this metric only; NAME:SOURCE names its weights.", metavar="NAME"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain the metrics: what each compares, what it costs, and how many images it needs."""
    from qua2sedimo.metrics.catalogue import METRICS, metric
    from qua2sedimo.terminal.metrics import document, metric_panel, metrics_notes, metrics_table

    shown = list(METRICS.values()) if name is None else [metric(name)]
    if as_json:
        found = [document(m) for m in shown]
        print(json.dumps(found if name is None else found[0], indent=1))
    elif name is not None:
        console.print(metric_panel(shown[0]))
    else:
        console.print(metrics_table(shown))
        for note in metrics_notes():
            console.print(note, style="dim")


@app.command(rich_help_panel=_PANEL)
def plan(
    study: StudyFolder,
    configurations: Annotated[int, typer.Option(help="Configurations to measure in total.", min=1, max=MOST)] = 100,
    device: Annotated[str | None, typer.Option(help="Try this device instead of that of study.yaml.")] = None,
    offload: Annotated[str, typer.Option(help="Try offloading: model, group, sequential.")] = "none",
    as_json: AsJson = False,
) -> None:
    """Estimate how long measuring takes on this machine, from a short trial."""
    from qua2sedimo.formats.text import command
    from qua2sedimo.study import Study
    from qua2sedimo.terminal.plan import plan_tables

    opened, asked = Study(study), Loading(device=device, offload=cast(OffloadName, offload))
    asked.check()
    settings = opened.workspace.settings
    opened.workspace.settings = settings.placed_as(settings.model_copy(update={"device": device, "offload": offload}))
    with progress() as report:
        made = opened.plan(configurations, progress=report)
    if as_json:
        print(json.dumps(made.document()))
        return
    for table in plan_tables(made):
        console.print(table)
    say(f"Next: {command('measure', study, '--configurations', configurations)}")
