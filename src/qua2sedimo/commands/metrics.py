"""What configurations can be measured by: metrics."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from qua2sedimo.commands.app import app


@app.command()
def metrics(
    name: Annotated[
        str | None, typer.Argument(help="Explain one metric; NAME:SOURCE with its weights.", metavar="[NAME]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Explain the metrics: what each compares, its cost, how many images it needs, whether it can be had here."""
    from qua2sedimo.metrics.catalogue import METRICS, metric
    from qua2sedimo.metrics_view import document, metric_panel, metrics_notes, metrics_table
    from qua2sedimo.terminal import console

    shown = list(METRICS.values()) if name is None else [metric(name)]
    if as_json:
        found = [document(m) for m in shown]
        print(json.dumps(found if name is None else found[0], indent=1))
    elif name is not None:
        console.print(metric_panel(shown[0]))
    else:
        console.print(metrics_table(shown))
        for note in metrics_notes():
            console.print(note, style="dim", highlight=False)
