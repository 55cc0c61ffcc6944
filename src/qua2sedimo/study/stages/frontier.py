"""The Pareto frontier: measured configurations from small to large, each exportable by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_document, write_json
from qua2sedimo.metrics.estimates import Estimate, mean_estimate
from qua2sedimo.options import Configuration, Option
from qua2sedimo.search import best_configurations, most_likely
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.evidence import FEW, check_objective, evidence, measure_all, measure_singles, per_image
from qua2sedimo.system.progress import Progress, silent

if TYPE_CHECKING:
    from qua2sedimo.study.facade import Study

FORMAT = 1
#: Average bits at which a configuration is proposed.
TARGETS = (2.2, 2.4, 2.6, 2.8, 3.0, 3.25, 3.5, 3.75, 4.0, 4.5, 5.0, 5.5, 6.0)
#: Images of the frontier: none that was learned from or that chose.
FIRST = 20_000
_REMEDY = "Run `qua2sedimo frontier` again."


@dataclass(frozen=True)
class Point:
    """A measured configuration: its name, size, quality with a 95 % interval, and whether none measured is smaller
    and better."""

    name: str
    configuration: Configuration
    average_bits: float
    nbytes: int
    quality: Estimate
    efficient: bool


def frontier(
    study: Study, targets: Sequence[float] = TARGETS, images: int = 16, progress: Progress = silent
) -> list[Point]:
    """Measure, on the same fresh images, the additive model's best configuration at each target, every kept choice,
    and the uniform configurations; mark those on the frontier, and leave frontier.json.

    Layers are measured alone first if they were not. Targets that cannot be reached are left out.
    """
    check_objective(study)
    measure_singles(study, FEW, progress)
    values = most_likely(evidence(study))
    space = study.space
    named: dict[str, Configuration] = {}
    for bits in targets:
        for configuration in best_configurations(space, values, int(bits * space.weights / 8), 1):
            named[f"{bits:g}"] = configuration
    for path in sorted((study.folder / "choices").glob("*.json")):
        choice, owner = Choice.load(path)
        if study.identity in owner:
            named[f"choice-{path.stem}"] = choice.configuration
    for option in sorted({o for o in space.union if all(o in of for of in space.options.values())}):
        named[f"uniform-{option}"] = space.uniform(option)
    configurations = list(dict.fromkeys(named.values()))
    measured = measure_all(
        study, "frontier", configurations, range(FIRST, FIRST + images), "measuring the frontier", progress
    )
    quality = {c: mean_estimate(np.array(per_image(study, m))) for c, m in zip(configurations, measured)}
    sizes = {c: space.nbytes(c) for c in configurations}
    points = [
        Point(n, c, space.average_bits(c), sizes[c], quality[c], _efficient(c, sizes, quality))
        for n, c in named.items()
    ]
    points.sort(key=lambda p: (p.nbytes, p.name))
    rows = [{**vars(p), "configuration": {k: str(o) for k, o in p.configuration.items()}, "quality": vars(p.quality)}
            for p in points]  # fmt: skip
    write_json(study.folder / "frontier.json", {"format": FORMAT, "owner": study.identity, "points": rows})
    return points


def _efficient(
    configuration: Configuration, sizes: dict[Configuration, int], quality: dict[Configuration, Estimate]
) -> bool:
    size, value = sizes[configuration], quality[configuration].value
    return not any(
        sizes[c] <= size and q.value >= value and (sizes[c] < size or q.value > value) for c, q in quality.items()
    )


def load_frontier(study: Study) -> list[Point]:
    """The points of frontier.json; a missing or damaged file, or one of another study, is an error that names it."""
    path = study.folder / "frontier.json"
    if not path.exists():
        raise Qua2SeDiMoError(f"{study.folder} has no frontier", f"Run `qua2sedimo frontier {study.folder}` first.")
    content = read_document(path, FORMAT, _REMEDY)
    if content.get("owner") != study.identity:
        raise Qua2SeDiMoError(f"{path} belongs to another space or other weights", _REMEDY)
    try:
        return [_point(row) for row in content["points"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise Qua2SeDiMoError(f"{path} is damaged: {error!r}", _REMEDY) from error


def _point(row: dict[str, Any]) -> Point:
    options = Configuration({k: Option.parse(o) for k, o in row["configuration"].items()})
    return Point(**{**row, "configuration": options, "quality": Estimate(**row["quality"])})


def named_choice(study: Study, choice: str | None, point: str | None) -> Choice | None:
    """The choice of that file name, or the frontier's point of that name as one; None if neither is asked for."""
    if choice and point:
        raise Qua2SeDiMoError("--choice and --point exclude each other", "Give one of them.")
    if choice:
        path = study.folder / "choices" / f"{choice}.json"
        if not path.exists():
            there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
            raise Qua2SeDiMoError(f"{study.folder} has no choice '{choice}'", f"There are: {there}.")
        made, owner = Choice.load(path)
        if study.identity not in owner:
            raise Qua2SeDiMoError(f"{path} belongs to another space or other weights", "Choose again.")
        return made
    if point:
        found = {p.name: p for p in load_frontier(study)}
        if point not in found:
            raise Qua2SeDiMoError(f"the frontier has no point '{point}'", f"There are: {', '.join(found)}.")
        p = found[point]
        measured = {study.settings.objective: p.quality.value}
        origin = f"frontier {point}"
        return Choice(p.average_bits, p.configuration, p.average_bits, p.nbytes, origin, p.quality.value, measured, [])
    return None
