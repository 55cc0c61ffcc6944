"""Spending images well: search, frontier."""

from __future__ import annotations

from typing import Annotated

import typer

from qua2sedimo.commands.app import StudyFolder, app
from qua2sedimo.commands.choosing import (
    AtMost,
    KeepLayers,
    ManyBits,
    ManyBytes,
    Methods,
    MinBits,
    Ratios,
    Why,
    budgets_of,
    constraints_of,
    print_next,
    print_place,
    print_reasons,
)

_USUAL = 3.5  # average bits of the point that is named as an example


@app.command()
def search(
    study: StudyFolder,
    bits: ManyBits = None,
    nbytes: ManyBytes = None,
    ratio: Ratios = None,
    images: Annotated[int, typer.Option(help="Images to spend in all, those measured before counted.", min=1)] = 4000,
    keep: KeepLayers = None,
    min_bits: MinBits = None,
    methods: Methods = None,
    methods_at_most: AtMost = None,
    why: Why = False,
) -> None:
    """Measure layers alone, then candidates in rounds, and keep the best on fresh images; run again, it goes on."""
    from qua2sedimo.commands.search_tables import rounds_table
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import candidates_table, console, progress

    opened = Study(study)
    objective = opened.workspace.settings.objective
    limits = constraints_of(keep, min_bits, methods, methods_at_most)
    budgets = budgets_of(bits, nbytes, ratio)
    for budget in budgets:
        with progress() as report:
            opened.quantize(report)
            found = opened.search(budget, images, report, limits)
        console.print(rounds_table(found, objective))
        console.print(candidates_table(found.choice, opened.workspace.objective))
        if why:
            print_reasons(opened, found.choice, limits)
        print_place(found.choice, opened.workspace.choice_path(budget, limits))
    print_next(study, opened.workspace.choice_path(budgets[-1], limits))


@app.command()
def frontier(
    study: StudyFolder,
    images: Annotated[int, typer.Option(help="Fresh images a point.", min=2)] = 16,
) -> None:
    """Measure configurations from 2.2 to 6 bits and say which are on the frontier; export takes any by --point."""
    from qua2sedimo.commands.search_tables import frontier_table
    from qua2sedimo.report.fill.study import frontier_points, objective_info
    from qua2sedimo.report.paper.files import write_frontier
    from qua2sedimo.study.facade import Study
    from qua2sedimo.study.stages.frontier import frontier as measured
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    with progress() as report:
        opened.quantize(report)
        points = measured(opened.workspace, images=images, progress=report)
    console.print(frontier_table(points, opened.workspace.settings.objective))
    figure = write_frontier(frontier_points(points), objective_info(opened.workspace.objective), study / "frontier.svg")
    console.print(f"{study / 'frontier.json'}, {figure}", soft_wrap=True)
    near = min((p for p in points if p.efficient), key=lambda p: abs(p.average_bits - _USUAL))
    console.print(f"Next: qua2sedimo export {study} OUT --point {near.name}", soft_wrap=True)
