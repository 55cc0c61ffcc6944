"""From a size to a configuration: choose, search, frontier, diff."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qua2sedimo.commands.app import FRESH_IMAGES, MOST, AsJson, RayAddress, StudyFolder, WorkerCount, app, workers_of
from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.text import command
from qua2sedimo.images.ledger import FRONTIER
from qua2sedimo.terminal.console import console, say
from qua2sedimo.terminal.progress import progress

if TYPE_CHECKING:
    from qua2sedimo.measuring.run import Workers
    from qua2sedimo.search import Budget, Constraints
    from qua2sedimo.study import Study
    from qua2sedimo.study.choices import Choice

_PANEL = "Choose"
_USUAL = 3.5  # average bits without a size asked for, and of the point named as an example

ManyBits = Annotated[
    list[float] | None,
    typer.Option(
        "--bits",
        help="Average bits per weight, all overhead included; repeatable. Default: 3.5.",
        min=1.0,
        max=16.0,
    ),
]
ManyBytes = Annotated[
    list[str] | None, typer.Option("--bytes", help="Size of the packed weights: 2.4MB; repeatable.", metavar="SIZE")
]
Ratios = Annotated[
    list[float] | None,
    typer.Option("--ratio", help="Share of the 16-bit size: 0.22; repeatable.", min=0.05, max=1.0),
]
KeepLayers = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Keep matching layers in 16 bits, counted in the size; repeatable.", metavar="PATTERN"),
]
MinBits = Annotated[
    list[str] | None,
    typer.Option("--min-bits", help="At least BITS for matching layers; repeatable.", metavar="PATTERN=BITS"),
]
Methods = Annotated[
    str | None, typer.Option(help="Only these methods, e.g. those your runtime has kernels for: `uaq,kmeans_a`.")
]
AtMost = Annotated[int | None, typer.Option("--methods-at-most", help="At most this many methods in total.", min=1)]
Why = Annotated[bool, typer.Option("--why", help="Show for every layer why it has its option.")]


def budgets_of(bits: list[float] | None, nbytes: list[str] | None, ratio: list[float] | None) -> list[Budget]:
    """All budgets that were asked for; 3.5 bits without any."""
    from qua2sedimo.search import Budget

    found = [Budget(b) for b in bits or ()] + [Budget.bytes(b) for b in nbytes or ()]
    found += [Budget(r, "ratio") for r in ratio or ()]
    return found or [Budget(_USUAL)]


def constraints_of(
    keep: Sequence[str] | None, min_bits: Sequence[str] | None, methods: str | None, at_most: int | None
) -> Constraints:
    """The constraints of a choice, from the options of the command line."""
    from qua2sedimo.search import Constraints

    return Constraints(
        tuple(keep or ()),
        tuple(Constraints.parse_min_bits(text) for text in min_bits or ()),
        tuple(sorted(m.strip() for m in (methods or "").split(",") if m.strip())),
        at_most,
    )


@app.command(rich_help_panel=_PANEL)
def choose(
    study: StudyFolder,
    bits: ManyBits = None,
    nbytes: ManyBytes = None,
    ratio: Ratios = None,
    candidates: Annotated[int | None, typer.Option(help="Candidates to measure. Default: 8.", min=1, max=1000)] = None,
    keep: KeepLayers = None,
    min_bits: MinBits = None,
    methods: Methods = None,
    methods_at_most: AtMost = None,
    why: Why = False,
    objective: Annotated[
        str | None,
        typer.Option(
            help="Trade quality against size instead of giving a size, as in the paper: `psnr - 3*bits`. Each block "
            "gets its best setting."
        ),
    ] = None,
    as_json: AsJson = False,
    workers: WorkerCount = None,
    ray: RayAddress = None,
) -> None:
    """Let the fitted predictor propose configurations within each size, measure them, and keep the best."""
    from qua2sedimo.search import allow, budget_bytes
    from qua2sedimo.study import Study

    opened, measuring = Study(study), workers_of(workers, ray)
    if objective is not None:
        if any((bits, nbytes, ratio, candidates, keep, min_bits, methods, methods_at_most, why)):
            raise Qua2SeDiMoError("--objective has no size and no constraints", "Give it alone, or a size without it.")
        _by_objective(opened, objective, as_json, measuring)
        return
    budgets, limits = budgets_of(bits, nbytes, ratio), constraints_of(keep, min_bits, methods, methods_at_most)
    allowed = allow(opened.workspace.reachable, limits, opened.workspace.names_of)
    for budget in budgets:  # all are checked before one is measured
        budget_bytes(opened.workspace.reachable, budget, allowed)
    said = _Said(opened, why, as_json)
    for budget in budgets:
        with progress() as report:
            choice = opened.choose(budget, candidates, report, limits, workers=measuring)
        said(choice, opened.workspace.choice_path(budget, limits))
    said.end()


def _by_objective(study: Study, text: str, as_json: bool, workers: Workers) -> None:
    from qua2sedimo.study.stages.tradeoff import choose_by_objective, objective_path
    from qua2sedimo.terminal.candidates import candidates_table

    with progress() as report:
        choice = choose_by_objective(study.workspace, text, report, workers=workers)
    path = objective_path(study.workspace, text)
    if as_json:
        print(json.dumps([_document(choice, path)]))
        return
    console.print(candidates_table(choice, study.workspace.parsed(text)))
    _print_place(choice, path)
    _print_next(study, path)


@app.command(rich_help_panel=_PANEL)
def quick(
    study: StudyFolder,
    bits: ManyBits = None,
    nbytes: ManyBytes = None,
    ratio: Ratios = None,
    keep: KeepLayers = None,
    min_bits: MinBits = None,
    methods: Methods = None,
    methods_at_most: AtMost = None,
    why: Why = False,
    as_json: AsJson = False,
    workers: WorkerCount = None,
    ray: RayAddress = None,
) -> None:
    """Choose by calibration statistics alone, round the weights again in sequence, and check the result: minutes."""
    from qua2sedimo.search import allow, budget_bytes
    from qua2sedimo.study import Study

    opened, building = Study(study), workers_of(workers, ray)
    budgets, limits = budgets_of(bits, nbytes, ratio), constraints_of(keep, min_bits, methods, methods_at_most)
    reachable = opened.workspace.reachable
    for budget in budgets:  # all are checked before work begins
        budget_bytes(reachable, budget, allow(reachable, limits, opened.workspace.names_of))
    said = _Said(opened, why, as_json)
    for budget in budgets:
        with progress() as report:
            choice = opened.quick(budget, report, limits, building)
        said(choice, opened.workspace.choice_path(budget, limits))
    said.end()


@app.command(rich_help_panel=_PANEL)
def polish(
    study: StudyFolder,
    name: Annotated[str, typer.Argument(help="A choice by its file in choices/, without .json.", metavar="CHOICE")],
    as_json: AsJson = False,
) -> None:
    """Round the weights of a choice again from input to output; kept if most images come nearer to full precision."""
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.frontier import named_choice

    opened = Study(study)
    chosen = named_choice(opened.workspace, name, None)
    assert chosen is not None
    with progress() as report:
        polished = opened.polish(chosen, report)
    _Said(opened, False, as_json, last=False)(polished, study / "choices" / f"{name}.json").end()
    if polished.polished is None and not as_json:
        say("Not polished: the weights as they were measure no worse, or the study rounds to nearest levels.")


@app.command(rich_help_panel=_PANEL)
def search(
    study: StudyFolder,
    bits: ManyBits = None,
    nbytes: ManyBytes = None,
    ratio: Ratios = None,
    image_budget: Annotated[
        int, typer.Option(help="Images to generate in total, with earlier ones.", min=1, max=MOST)
    ] = 4000,
    keep: KeepLayers = None,
    min_bits: MinBits = None,
    methods: Methods = None,
    methods_at_most: AtMost = None,
    why: Why = False,
    as_json: AsJson = False,
    workers: WorkerCount = None,
    ray: RayAddress = None,
) -> None:
    """Search for the best configuration within each size; needs no fitted predictor.

    Measures layers alone, then candidates in rounds, and the finalists on fresh images; at last it compares with the
    choice that quick would make. Run the same command again to resume.
    """
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.search import check_search
    from qua2sedimo.terminal.candidates import comparison_text, rounds_table

    opened, measuring = Study(study), workers_of(workers, ray)
    budgets, limits = budgets_of(bits, nbytes, ratio), constraints_of(keep, min_bits, methods, methods_at_most)
    for budget in budgets:  # all are checked before a layer is quantized
        check_search(opened.workspace, budget, image_budget, limits)
    said = _Said(opened, why, as_json)
    for budget in budgets:
        with progress() as report:
            opened.quantize(report, measuring)
            found = opened.search(budget, image_budget, report, limits, workers=measuring)
        if found.rounds and not as_json:
            console.print(rounds_table(found, opened.workspace.settings.objective))
        if found.compared and not as_json:
            say(comparison_text(found.compared, opened.workspace.settings.objective))
        said(found.choice, opened.workspace.choice_path(budget, limits))
    said.end()


@app.command(rich_help_panel=_PANEL)
def frontier(
    study: StudyFolder,
    images: Annotated[
        int, typer.Option("--fresh-images", help="Images that each point is measured on.", min=2, max=FRONTIER.size)
    ] = FRESH_IMAGES,
    workers: WorkerCount = None,
    ray: RayAddress = None,
) -> None:
    """Measure the best configurations from 2.2 to 6 bits: the trade-off of quality against size."""
    from qua2sedimo.report.fill.study import frontier_points, objective_info
    from qua2sedimo.report.paper.files import write_frontier
    from qua2sedimo.study import Study
    from qua2sedimo.study.evidence import check_objective
    from qua2sedimo.terminal.candidates import frontier_table

    opened, measuring = Study(study), workers_of(workers, ray)
    check_objective(opened.workspace)
    with progress() as report:
        opened.quantize(report, measuring)
        points = opened.frontier(images=images, progress=report, workers=measuring)
    console.print(frontier_table(points, opened.workspace.settings.objective))
    objective = objective_info(opened.workspace.objective)
    figure = write_frontier(frontier_points(points), objective, study / "frontier.svg")
    say(f"{study / 'frontier.json'}, {figure}")
    near = min((p for p in points if p.efficient), key=lambda p: abs(p.average_bits - _USUAL))
    say(f"Next: {command('export', study, 'OUT', '--point', near.name)}")


@app.command(rich_help_panel=_PANEL)
def diff(
    a: Annotated[Path, typer.Argument(help="A choice: STUDY/choices/3.5.json", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another choice.", metavar="B")],
) -> None:
    """Compare two choices: size, quality, and every layer whose option differs."""
    from qua2sedimo.study.choices import Choice
    from qua2sedimo.terminal.choices import difference_table

    first, second = Choice.load(a), Choice.load(b)
    console.print(difference_table(first, second, (a.stem, b.stem)))


class _Said:
    """Prints choices as they are made; with ``as_json`` all of them at the end, as one list."""

    def __init__(self, study: Study, why: bool, as_json: bool, last: bool = True) -> None:
        """``why``: also why each layer has its option. ``last``: at the end, the command that exports the last one."""
        self._study, self._why, self._as_json, self._names_next = study, why, as_json, last
        self._made: list[tuple[Choice, Path]] = []

    def __call__(self, choice: Choice, path: Path) -> _Said:
        self._made.append((choice, path))
        if not self._as_json:
            self._print(choice, path)
        return self

    def end(self) -> None:
        """After the last choice."""
        if self._as_json:
            print(json.dumps([_document(choice, path) for choice, path in self._made]))
        elif self._names_next:
            _print_next(self._study, self._made[-1][1])

    def _print(self, choice: Choice, path: Path) -> None:
        from qua2sedimo.study.stages.choose import why as why_chosen
        from qua2sedimo.terminal.candidates import candidates_table
        from qua2sedimo.terminal.choices import reasons_table

        inside = self._study.workspace
        console.print(candidates_table(choice, inside.objective))
        if self._why:
            console.print(
                reasons_table(why_chosen(inside, choice), inside.objective.unit if inside.objective.in_decibels else "")
            )
        _print_place(choice, path)


def _document(choice: Choice, path: Path) -> dict[str, Any]:
    """A choice as plain data: where it is kept, its size, how it was found, what was measured, and every layer."""
    return {
        "path": str(path), "average_bits": choice.average_bits, "bytes": choice.nbytes, "origin": choice.origin,
        "polished": choice.polished is not None, "measured": choice.measured,
        "configuration": {layer: str(option) for layer, option in choice.configuration.items()},
    }  # fmt: skip


def _print_place(choice: Choice, path: Path) -> None:
    say(f"{path}: {choice.nbytes:,} bytes, {choice.average_bits:.3f} bits")


def _print_next(study: Study, path: Path) -> None:
    say(f"Next: {command('export', study.folder, 'OUT', '--choice', path.stem)}")
