"""From a study's results to the plain data of a report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

import torch
from torch import nn

from qua2sedimo.denoisers import weight_modules
from qua2sedimo.denoisers.pipelines import denoisers_of
from qua2sedimo.formats.text import command
from qua2sedimo.images.ledger import COMPARISON
from qua2sedimo.metrics.catalogue import METRICS, metric
from qua2sedimo.metrics.estimates import Estimate, mean_estimate
from qua2sedimo.objective import Objective
from qua2sedimo.records import Record
from qua2sedimo.report.data import (
    MeasuredPoint,
    MetricInfo,
    PictureRow,
    PointKind,
    ReportData,
    TableRow,
)  # fmt: skip
from qua2sedimo.report.fill.layers import cost_unit, graph_nodes, layer_choices, layer_options, layer_steps
from qua2sedimo.report.fill.packed_model import loading_code, read_packed
from qua2sedimo.report.fill.predictor import predictor_quality
from qua2sedimo.report.fill.sizes import other_sizes
from qua2sedimo.sensitivity import expected_damage
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.compare import Row
from qua2sedimo.study.stages.explain import sensitivity
from qua2sedimo.study.stages.fit import fitted, samples_since
from qua2sedimo.study.stages.frontier import Point
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.versions import versions

#: Roles of the records that are shown, and their kinds; layers measured alone have no comparable size.
_ROLES: dict[str, PointKind] = {
    "sample": "random",
    "candidate": "candidate",
    "round": "candidate",
    "final": "candidate",
    "frontier": "frontier",
}
_NOTES = 5  # remarks on single layers that are shown


def report_data(
    study: Workspace, choice: Choice | None, rows: list[Row], explained: bool = True, packed: Path | None = None
) -> ReportData:
    """Everything the report shows of one choice of a study, whose packed model is in the folder ``packed``.

    Without a choice, without a predictor (``explained``) or without rows, the parts that need them are empty.
    """
    found = sensitivity(study) if explained else None
    space = study.space
    return ReportData(
        title=f"{study.settings.model} at {choice.average_bits:.2f} bits" if choice else study.settings.model,
        model=study.settings.model,
        pipeline=type(study.pipeline).__name__,
        layers=len(space.layers),
        weights=space.weights,
        full_bytes=2 * space.weights,
        budget_bits=choice.bits_asked if choice else math.nan,
        ours_bits=choice.average_bits if choice else math.nan,
        ours_bytes=choice.nbytes if choice else 0,
        table=[TableRow(r.name, r.kind, r.average_bits, r.nbytes, r.metrics, r.seconds) for r in rows],
        metric_infos=[metric_info(name) for name in (rows[0].metrics if rows else study.objective.metrics)],
        pictures=[PictureRow(r.name, [image.squeeze() for image in r.pictures]) for r in _shown(rows)],
        captions=_captions(study, rows),
        objective=objective_info(study.objective),
        points=_points(study, choice, rows),
        options=layer_options(study, found) if found else [],
        steps=layer_steps(study, found) if found else [],
        choices=layer_choices(study, choice, found) if choice else [],
        predictor=predictor_quality(study) if explained else None,
        provenance=_provenance(study, choice, explained),
        findings=found.findings if found else [],
        nodes=graph_nodes(study),
        cost_unit=cost_unit(found) if found else "",
        commands=_commands(study, choice) if choice else [],
        settings=(study.folder / "study.yaml").read_text(encoding="utf-8"),
        code="" if packed is None else loading_code(read_packed(packed), _place(packed)),
        other_bytes=_other_bytes(study),
        sizes=other_sizes(study, choice) if choice else [],
        expected=expected_damage(study.graph.layers, study.bank) if study.is_quantized else [],
        expected_from=study.bank.changes.source if study.is_quantized else "",
    )


def _other_bytes(study: Workspace) -> int:
    """Bytes of the pipeline's tensors that are not quantized, as they are loaded."""
    parts = [part for part in getattr(study.pipeline, "components", {}).values() if isinstance(part, nn.Module)]
    tensors = {id(t): t.nbytes for part in parts for t in (*part.parameters(), *part.buffers())}
    shapes, layers = study.space.shapes, study.graph.layers
    modules = weight_modules(study.denoiser)
    quantized = sum(math.prod(shape) * _element_size(modules[layers[n].module]) for n, shape in shapes.items())
    return max(0, sum(tensors.values()) - quantized)


def _element_size(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.element_size()


def metric_info(name: str) -> MetricInfo:
    """What the catalogue of metrics says of a metric."""
    known = metric(name)
    said = {f.name: getattr(known, f.name) for f in fields(MetricInfo) if f.name != "paired"}
    return MetricInfo(**said, paired=known.kind == "paired")


def objective_info(objective: Objective) -> MetricInfo:
    """The objective as a metric; an expression of several is its own name."""
    if objective.text in METRICS:
        return metric_info(objective.text)
    return MetricInfo(objective.text, objective.text, objective.unit, objective.higher_is_better)


def _shown(rows: list[Row]) -> list[Row]:
    """Full precision, ours, the best uniform row of each width and the smallest file of another tool, so that the
    comparison of pictures is fair."""
    shown = [r for kind in ("full", "ours") for r in rows if r.kind == kind]
    for width in ("-4", "-3"):
        uniform = [r for r in rows if r.kind == "uniform" and r.name.endswith(width)]
        shown += sorted(uniform, key=lambda r: -r.metrics["psnr"].value)[:1]
    return shown + sorted((r for r in rows if r.kind == "outside"), key=lambda r: r.nbytes)[:1]


def _captions(study: Workspace, rows: list[Row]) -> list[str]:
    shown = COMPARISON.images(len(rows[0].pictures)) if rows else range(0)
    found = [study.generation.input(number) for number in shown]
    return [f"image {i}" if value is None else str(value) for i, value in enumerate(found, 1)]


def _points(study: Workspace, choice: Choice | None, rows: list[Row]) -> list[MeasuredPoint]:
    """Everything measured but layers alone; what was chosen for other budgets has a label."""
    objective = study.objective
    chosen = {made.configuration.digest: made for made in study.choices()}
    points, seen = [], {choice.configuration.digest} if choice else set()
    for role, kind in _ROLES.items():
        for record in study.records.all(role):
            shown, label, digest = kind, f"{kind} {record.number}", record.configuration.digest
            if role in ("candidate", "final") and digest in chosen and digest not in seen:
                shown, label = "choice", f"chosen for {chosen[digest].asked}"
                seen.add(digest)
            points.append(MeasuredPoint(record.average_bits, _estimate(objective, record), shown, label))
    #: A paired metric compares full precision with itself.
    kinds = (
        ("uniform", "outside", "ours")
        if any(metric_info(m).paired for m in objective.metrics)
        else ("full", "uniform", "outside", "ours")
    )
    return points + [
        MeasuredPoint(row.average_bits, _row_estimate(objective, row), cast(PointKind, row.kind), row.name)
        for row in rows
        if row.kind in kinds and all(name in row.metrics for name in objective.metrics)
    ]


def frontier_points(points: Sequence[Point]) -> list[MeasuredPoint]:
    """What the command ``frontier`` measured; kinds follow from the points' names."""
    kinds: dict[str, PointKind] = {"uniform": "uniform", "choice": "choice"}
    return [
        MeasuredPoint(p.average_bits, p.quality, kinds.get(p.name.split("-")[0], "frontier"), p.name) for p in points
    ]


def _estimate(objective: Objective, record: Record) -> Estimate:
    """With an interval over images, or without one where a metric belongs to the whole set of them."""
    images = objective.per_image(record)
    if images is not None:
        return mean_estimate(images)
    if objective.text in record.measurement.sets:
        return record.measurement.sets[objective.text]
    return Estimate(objective.value(record), math.nan, math.nan, 0)


def _row_estimate(objective: Objective, row: Row) -> Estimate:
    """A metric's own interval; an expression of several has none here."""
    if objective.text in row.metrics:
        return row.metrics[objective.text]
    value = objective.of({name: e.value for name, e in row.metrics.items()}, row.average_bits, row.configuration)
    return Estimate(value, math.nan, math.nan, 0)


def _commands(study: Workspace, choice: Choice) -> list[str]:
    """The commands that repeat the study in a folder that holds its study.yaml."""
    folder, asked = study.folder.name, shlex.split(choice.flags)
    steps: list[list[object]] = [["measure", folder, "--configurations", len(study.records.all("sample"))]]
    if choice.images is not None:
        steps += [["search", folder, *asked, "--image-budget", choice.images], ["fit", folder], ["explain", folder]]
    else:
        steps += [["fit", folder], ["explain", folder], ["choose", folder, *asked]]
    steps.append(["export", folder, f"{folder}/packed-{choice.name}", "--choice", choice.name])
    if not choice.constraints.name and choice.budget.unit == "bits":
        steps.append(["report", folder, *asked])
    return [command(*step) for step in steps]


def _fit(study: Workspace) -> str:
    ensemble, _ = fitted(study)
    since = samples_since(study, ensemble)
    newer = f"; {since} configurations measured since are not in it" if since else ""
    return f"{len(ensemble.folds)} folds, loss {study.settings.loss}{newer}"


def _rounding(study: Workspace, choice: Choice | None) -> dict[str, str]:
    """How weights were rounded, and which layers are an exception."""
    if not study.settings.compensates:
        return {"rounding": "nearest"}
    found = study.statistics
    polished = ", then polished" if choice and choice.polished else ""
    said = {"rounding": f"compensated, by statistics of {found.images} images in full precision{polished}"}
    notes = found.notes()
    if not found.has_gradients:
        said["gradients"] = (
            "not of every denoiser, as a backward pass is not possible or does not fit into memory: there each layer "
            "was changed by itself instead"
        )
    if notes:
        shown = [f"{unit}: {note}" for unit, note in list(notes.items())[:_NOTES]]
        more = f"; and {len(notes) - _NOTES} more" if len(notes) > _NOTES else ""
        said["layers apart"] = "; ".join(shown) + more
    return said


def _place(packed: Path) -> str:
    """How a folder is named in a report, which is passed on: without this machine's place for it."""
    return packed.name if packed.is_absolute() else str(packed)


def _provenance(study: Workspace, choice: Choice | None, explained: bool) -> dict[str, str]:
    samples, space = study.records.all("sample"), study.space
    seconds = sum(r.measurement.seconds for r in samples)
    of = f" for {choice.objective}" if choice and choice.objective else ""
    chosen = f"{choice.origin}{of}, best of {len(choice.candidates)} measured candidates" if choice else ""
    whole = [name for name in denoisers_of(study.pipeline) if name not in study.denoisers]
    left = [
        *(f"{name}, a whole denoiser" for name in whole),
        *study.graph.bypassed,
        *study.graph.left_alone,
        *(n for n in study.graph.layers if n not in space.shapes),
    ]
    return {
        "study": study.folder.name,
        "options": f"{study.settings.options}: {', '.join(map(str, sorted(space.union)))}",
        "seed": str(study.settings.seed),
        "arguments": ", ".join(f"{k}={v}" for k, v in study.settings.arguments.items()),
        "measured": f"{len(samples)} random configurations × {study.settings.images} images in {seconds:.0f} s",
        **_rounding(study, choice),
        **({"predictor": _fit(study)} if explained else {}),
        **({"chosen by": chosen} if choice else {}),
        **({"not quantized": ", ".join(left)} if left else {}),
        **versions(),
    }
