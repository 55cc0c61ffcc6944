"""The Pareto frontier: measured configurations from small to large, each exportable by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.document import STRICT, Document
from qua2sedimo.formats.text import command
from qua2sedimo.images.ledger import FRONTIER
from qua2sedimo.measuring.run import Workers
from qua2sedimo.metrics.estimates import Estimate, mean_estimate
from qua2sedimo.options import Configuration
from qua2sedimo.search import best_configurations, most_likely, pareto_front
from qua2sedimo.study.choices import Candidate, Choice
from qua2sedimo.study.evidence import FEW, check_objective, evidence, measure_singles
from qua2sedimo.study.measurements import measure_all, per_image
from qua2sedimo.study.worker import crew
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.progress import Progress, silent

#: Average bits at which a configuration is proposed.
TARGETS = (2.2, 2.4, 2.6, 2.8, 3.0, 3.25, 3.5, 3.75, 4.0, 4.5, 5.0, 5.5, 6.0)


class Point(BaseModel):
    """A measured configuration: name, size, quality with a 95 % interval, and whether it is Pareto-efficient."""

    model_config = ConfigDict(**STRICT, frozen=True)

    name: str
    configuration: Configuration
    average_bits: float
    nbytes: int
    quality: Estimate
    efficient: bool


class Frontier(Document):
    """frontier.json."""

    remedy: ClassVar[str] = "Run `qua2sedimo frontier` again."

    format: Literal[1] = 1
    owner: str
    points: list[Point]


def frontier(
    study: Workspace,
    targets: Sequence[float] = TARGETS,
    images: int = 16,
    progress: Progress = silent,
    workers: Workers = Workers(),
) -> list[Point]:
    """Measure, on the same fresh images, the damage model's best configuration at each target, every stored choice,
    and the uniform configurations; mark the Pareto-efficient ones, and store all in frontier.json.

    Single layers are measured first if necessary. Targets that cannot be reached are left out. If a frontier was
    measured on fewer images, only the missing ones are generated.
    """
    check_objective(study)
    fresh = FRONTIER.images(images)
    with crew(study, workers, progress):
        measure_singles(study, FEW, progress)
        named = _named(study, targets)
        configurations = list(dict.fromkeys(named.values()))
        measured = measure_all(study, "frontier", configurations, fresh, "measuring the frontier", progress)
    quality = {c: mean_estimate(per_image(study, m)) for c, m in zip(configurations, measured) if m is not None}
    known = list(quality)
    front = pareto_front([study.space.nbytes(c) for c in known], [quality[c].value for c in known])
    efficient = {known[i] for i in front}
    points = [
        Point(
            name=name, configuration=c, average_bits=study.space.average_bits(c), nbytes=study.space.nbytes(c),
            quality=quality[c], efficient=c in efficient,
        )
        for name, c in named.items() if c in quality
    ]  # fmt: skip
    points.sort(key=lambda p: (p.nbytes, p.name))
    Frontier(owner=study.identity, points=points).save(study.folder / "frontier.json")
    return points


def _named(study: Workspace, targets: Sequence[float]) -> dict[str, Configuration]:
    """What is measured: the best at each target, the stored choices, and uniform options that all layers have."""
    space, values = study.space, most_likely(evidence(study))
    named: dict[str, Configuration] = {}
    for bits in targets:
        for configuration in best_configurations(space, values, int(bits * space.weights / 8), 1):
            named[f"{bits:g}"] = configuration
    named |= {f"choice-{choice.name}": choice.configuration for choice in study.choices()}
    common = sorted(o for o in space.union if all(o in of for of in space.options.values()))
    return named | {f"uniform-{option}": space.uniform(option) for option in common}


def load_frontier(study: Workspace) -> list[Point]:
    """The points of frontier.json; raises :class:`Qua2SeDiMoError` if it is missing, damaged or of another study."""
    path = study.folder / "frontier.json"
    if not path.exists():
        raise Qua2SeDiMoError(f"{study.folder} has no frontier", f"Run `{command('frontier', study.folder)}` first.")
    found = Frontier.load(path)
    if found.owner != study.identity:
        raise Qua2SeDiMoError(f"{path} belongs to another space or other weights", Frontier.remedy)
    return found.points


def named_choice(study: Workspace, choice: str | None, point: str | None) -> Choice | None:
    """The choice with this file name, or the frontier's point as a choice; None if neither is given."""
    if choice and point:
        raise Qua2SeDiMoError("--choice and --point exclude each other", "Give one of them.")
    if choice:
        path = study.folder / "choices" / f"{choice}.json"
        if not path.exists():
            there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
            raise Qua2SeDiMoError(f"{study.folder} has no choice '{choice}'", f"There are: {there}.")
        made = Choice.load(path)
        if study.identity not in made.owner:
            raise Qua2SeDiMoError(f"{path} belongs to another space or other weights", "Choose again.")
        return made
    if point:
        found = {p.name: p for p in load_frontier(study)}
        if point not in found:
            raise Qua2SeDiMoError(f"the frontier has no point '{point}'", f"There are: {', '.join(found)}.")
        p = found[point]
        best = Candidate(
            origin=f"frontier {point}", configuration=p.configuration, average_bits=p.average_bits,
            predicted=p.quality.value, measured={study.settings.objective: p.quality.value},
        )  # fmt: skip
        return Choice.of(best, study.space, study.identity, candidates=[])
    return None
