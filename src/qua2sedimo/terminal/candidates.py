"""What was measured on the way to a choice: candidates, rounds of a search, points of the frontier."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from qua2sedimo.objective import Objective
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.frontier import Point
from qua2sedimo.study.stages.search import Found
from qua2sedimo.study.stages.search_log import Compared
from qua2sedimo.terminal.console import interval, number, table


def candidates_table(choice: Choice, objective: Objective) -> Table:
    """The candidates of a choice with the objective they were chosen by, predicted and measured."""
    predicted, measured = f"{objective.text} predicted", f"{objective.text} measured"
    title = f"Candidates for {choice.asked}, measured"
    made = table("proposed by", "average bits", predicted, measured, title=title)
    for c in choice.candidates:
        value = objective.of(c.measured, c.average_bits, c.configuration)
        style = "bold green" if c.configuration == choice.configuration else None
        made.add_row(c.origin, f"{c.average_bits:.3f}", number(c.predicted), number(value), style=style)
    if choice.p_value is not None:
        made.caption = f"the best against the second, on the same images: p = {choice.p_value:.3f}"
    return made


def rounds_table(found: Found, objective: str) -> Table:
    """How far each round of a search came."""
    made = table("round", "images", f"best {objective} on few images", "expected gain", "noise")
    for r in found.rounds:
        made.add_row(str(r.number), str(r.spent), number(r.best), number(r.expected_gain), number(r.noise))
    return made


def comparison_text(compared: Compared, objective: str) -> str:
    """What measuring added, in a sentence."""
    kept = "the former" if compared.gain >= 0 else "the latter"
    return (
        f"Polished, on {compared.images} fresh images: found by measuring {compared.measured:.2f} dB, by gradients "
        f"alone {compared.gradients:.2f} dB ({objective}); half of the images gain {compared.gain:+.2f} dB or more, so "
        f"{kept} is kept"
    )


def frontier_table(points: Sequence[Point], objective: str) -> Table:
    """All points by size; those on the frontier are marked."""
    made = table("point", "bits", "MB", objective, "95 % interval", "on the frontier")
    for p in points:
        sizes = f"{p.average_bits:.3f}", f"{p.nbytes / 1e6:.3f}"
        cells = number(p.quality.value), interval(p.quality), "yes" if p.efficient else ""
        made.add_row(p.name, *sizes, *cells, style="bold green" if p.efficient else "dim")
    return made
