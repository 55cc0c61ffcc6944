"""Looking at a model before anything is measured: inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qua2sedimo.commands.app import Arguments, Component, app, pipeline_arguments


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
