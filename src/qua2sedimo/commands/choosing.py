"""From a size to a packed model: choose, diff, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qua2sedimo.commands.app import StudyFolder, app
from qua2sedimo.errors import Qua2SeDiMoError

if TYPE_CHECKING:
    from qua2sedimo.search import Budget, Constraints
    from qua2sedimo.study import Study
    from qua2sedimo.study.choices import Choice

ManyBits = Annotated[
    list[float] | None,
    typer.Option("--bits", help="Average bits per weight, every overhead counted (3.5); repeat it.", min=1.0, max=16.0),
]
ManyBytes = Annotated[list[str] | None, typer.Option("--bytes", help="A size: 2.4MB; repeat it.", metavar="SIZE")]
Ratios = Annotated[
    list[float] | None, typer.Option("--ratio", help="A share of the 16-bit size: 0.22; repeat it.", min=0.05, max=1.0)
]
KeepLayers = Annotated[
    list[str] | None,
    typer.Option("--keep", help="Leave layers that match in 16 bits, counted so; repeat it.", metavar="PATTERN"),
]
MinBits = Annotated[
    list[str] | None, typer.Option("--min-bits", help="At least so many for layers that match.", metavar="PATTERN=BITS")
]
Methods = Annotated[
    str | None, typer.Option(help="Only these, e.g. those your runtime has kernels for: `uaq,kmeans_a`.")
]
AtMost = Annotated[int | None, typer.Option("--methods-at-most", help="So many different methods in all.", min=1)]
Why = Annotated[bool, typer.Option("--why", help="Say of every layer what decided its option.")]


def budgets_of(bits: list[float] | None, nbytes: list[str] | None, ratio: list[float] | None) -> list[Budget]:
    """All budgets that were asked for; 3.5 bits if none was."""
    from qua2sedimo.search import Budget

    found = [Budget(b) for b in bits or ()] + [Budget.bytes(b) for b in nbytes or ()]
    found += [Budget(r, "ratio") for r in ratio or ()]
    return found or [Budget(3.5)]


def constraints_of(
    keep: Sequence[str] | None, min_bits: Sequence[str] | None, methods: str | None, at_most: int | None
) -> Constraints:
    from qua2sedimo.search import Constraints

    return Constraints(
        tuple(keep or ()),
        tuple(Constraints.parse_min_bits(text) for text in min_bits or ()),
        tuple(sorted(m.strip() for m in (methods or "").split(",") if m.strip())),
        at_most,
    )


@app.command()
def choose(
    study: StudyFolder,
    bits: ManyBits = None,
    nbytes: ManyBytes = None,
    ratio: Ratios = None,
    candidates: Annotated[int | None, typer.Option(help="How many to measure (8).", min=1)] = None,
    keep: KeepLayers = None,
    min_bits: MinBits = None,
    methods: Methods = None,
    methods_at_most: AtMost = None,
    why: Why = False,
    objective: Annotated[
        str | None,
        typer.Option(help="No size but a trade-off, as in the paper: `psnr - 3*bits`. Each block takes its best."),
    ] = None,
) -> None:
    """Find the best configurations within each budget, measure them, and keep the best measured one."""
    from qua2sedimo.search import allow, budget_bytes
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import candidates_table, console, progress

    opened = Study(study)
    if objective is not None:
        if any((bits, nbytes, ratio, candidates, keep, min_bits, methods, methods_at_most, why)):
            raise Qua2SeDiMoError("--objective has no size and no constraints", "Give it alone, or a size without it.")
        _by_objective(opened, objective)
        return
    budgets, limits = budgets_of(bits, nbytes, ratio), constraints_of(keep, min_bits, methods, methods_at_most)
    allowed = allow(opened.workspace.space, limits, opened.workspace.names_of)
    for budget in budgets:  # all are refused before one is measured
        budget_bytes(opened.workspace.space, budget, allowed)
    for budget in budgets:
        with progress() as report:
            choice = opened.choose(budget, candidates, report, limits)
        console.print(candidates_table(choice, opened.workspace.objective))
        if why:
            print_reasons(opened, choice, limits)
        print_place(choice, opened.workspace.choice_path(budget, limits))
    print_next(study, opened.workspace.choice_path(budgets[-1], limits))


def print_reasons(study: Study, choice: Choice, limits: Constraints) -> None:
    """Say of every layer what decided its option."""
    from qua2sedimo.commands.search_tables import reasons_table
    from qua2sedimo.study.stages.choose import why
    from qua2sedimo.terminal import console

    unit = study.workspace.objective.unit if study.workspace.objective.in_decibels else ""
    console.print(reasons_table(why(study.workspace, choice), unit))


def print_place(choice: Choice, path: Path) -> None:
    """Say where a choice is kept."""
    from qua2sedimo.terminal import console

    console.print(f"{path}: {choice.nbytes:,} bytes, {choice.average_bits:.3f} bits", soft_wrap=True)


def print_next(study: Path, path: Path) -> None:
    """Say how a choice becomes a model."""
    from qua2sedimo.terminal import console

    console.print(f"Next: qua2sedimo export {study} OUT --choice {path.stem}", soft_wrap=True)


def _by_objective(study: Study, objective: str) -> None:
    from qua2sedimo.study.stages.tradeoff import choose_by_objective, objective_path
    from qua2sedimo.terminal import candidates_table, console, progress

    with progress() as report:
        choice = choose_by_objective(study.workspace, objective, report)
    console.print(candidates_table(choice, study.workspace.objective))
    path = objective_path(study.workspace, objective)
    print_place(choice, path)
    print_next(study.folder, path)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A choice: STUDY/choices/3.5.json", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
) -> None:
    """Compare two choices: size, quality, and every layer whose option differs."""
    from qua2sedimo.commands.search_tables import difference_table
    from qua2sedimo.study.choices import Choice
    from qua2sedimo.terminal import console

    first, second = Choice.load(a), Choice.load(b)
    console.print(difference_table(first, second, (a.stem, b.stem)))


@app.command()
def export(
    study: StudyFolder,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    bits: Annotated[float, typer.Option(help="The choice of so many average bits.", min=1.0, max=16.0)] = 3.5,
    choice: Annotated[str | None, typer.Option(help="A choice by its file's name in choices/, without .json.")] = None,
    point: Annotated[str | None, typer.Option(help="A point of the frontier by its name.")] = None,
    act_bits: Annotated[
        int | None, typer.Option(help="Quantize activations too when the model is loaded: 8 or 6 bits.", min=4, max=8)
    ] = None,
) -> None:
    """Write the choice as a packed pipeline that `DiffusionPipeline.from_pretrained` loads."""
    from qua2sedimo.study import Study
    from qua2sedimo.study.stages.frontier import named_choice
    from qua2sedimo.terminal import console, size

    opened = Study(study)
    named = named_choice(opened.workspace, choice, point)
    packed = opened.export(named or opened.choose(bits), out, act_bits)
    console.print(
        f"{out}: {packed.weights / 1e6:.2f} M weights in {size(packed.quantized_bytes)}, {packed.average_bits:.4f} bits"
    )
