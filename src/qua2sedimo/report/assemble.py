"""From a study's results to the plain data of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from qua2sedimo.metrics.catalogue import metric
from qua2sedimo.metrics.estimates import Estimate, mean_estimate
from qua2sedimo.objective import Objective
from qua2sedimo.predictor.additive import additive_out_of_fold, relative_errors
from qua2sedimo.predictor.baselines import ridge_out_of_fold
from qua2sedimo.records import Record
from qua2sedimo.report.assemble_layers import cost_unit, graph_nodes, layer_choices, layer_scores
from qua2sedimo.report.data import (
    MeasuredPoint,
    MetricInfo,
    MetricValue,
    PictureRow,
    PointKind,
    PredictorQuality,
    ReportData,
    TableRow,
)
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.compare import Row
from qua2sedimo.study.stages.explain import sensitivity
from qua2sedimo.study.stages.fit import fitted, fitted_records, training_data
from qua2sedimo.study.workspace import Workspace
from qua2sedimo.system.versions import versions

_REPLICATES = 400
#: What is shown of the records, and as what; layers measured alone are none of a budget's rivals.
_ROLES: dict[str, PointKind] = {
    "sample": "random",
    "candidate": "candidate",
    "round": "candidate",
    "final": "candidate",
    "frontier": "frontier",
}


def report_data(study: Workspace, choice: Choice | None, rows: list[Row], explained: bool = True) -> ReportData:
    """Everything the report shows of one choice of a study.

    Without a choice, or of a study that is not ``explained``, or without rows: what there is without them.
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
        table=[TableRow(r.name, r.kind, r.average_bits, r.nbytes, _values(r.metrics)) for r in rows],  # type: ignore[arg-type]
        metric_infos=_metric_infos(study, rows),
        pictures=[PictureRow(r.name, [image.squeeze() for image in r.pictures]) for r in _shown(rows)],
        captions=[str(value) for value in _captions(study, rows)] if rows else [],
        objective=study.settings.objective,
        points=_points(study, choice, rows),
        scores=layer_scores(study, found) if found else [],
        choices=layer_choices(study, choice, found) if choice else [],
        predictor=predictor_quality(study) if explained else None,
        provenance=_provenance(study, choice, explained),
        findings=found.findings if found else [],
        nodes=graph_nodes(study),
        cost_unit=cost_unit(found) if found else "",
        commands=_commands(study, choice) if choice else [],
        settings=(study.folder / "study.yaml").read_text(encoding="utf-8"),
    )


def predictor_quality(study: Workspace) -> PredictorQuality:
    """Rank correlations on records that neither trained nor selected the fold that predicts them."""
    ensemble, records = fitted(study)[0], fitted_records(study)
    positions, predicted = ensemble.out_of_fold()
    records = [records[i] for i in positions]
    choices, objective = training_data(study, records)
    place = {int(p): i for i, p in enumerate(positions)}
    folds = [[place[i] for i in fold.test] for fold in ensemble.folds]
    errors = relative_errors(study.space, study.bank, choices)
    baselines = {
        "additive sensitivities": additive_out_of_fold(study.graph, study.space, errors, objective, folds),
        "ridge on one-hot options": ridge_out_of_fold(study.space, choices, objective, folds),
        "sum of relative errors": np.array([-study.bank.relative_mse(r.configuration) for r in records]),
        "average bits": np.array([r.average_bits for r in records]),
    }
    sign = study.objective.sign
    return PredictorQuality(
        rank_correlation=_rank_correlation(predicted, objective),
        baselines={name: _rank_correlation(values, objective) for name, values in baselines.items()},
        predicted=[float(sign * y) for y in predicted],
        measured=[float(sign * y) for y in objective],
        noise_ceiling=noise_ceiling(records, study.objective),
    )


def noise_ceiling(records: list[Record], objective: Objective) -> float | None:
    """Rank correlation a perfect predictor could reach: √ of the split-half reliability of the labels.

    Odd against even images, stepped up to all images by Spearman and Brown's formula. None for a metric of sets, which
    has no value an image.
    """
    images = [objective.per_image(r) for r in records]
    if any(one is None or len(one) < 4 for one in images):
        return None
    values = np.array(images)
    half = float(spearmanr(values[:, ::2].mean(axis=1), values[:, 1::2].mean(axis=1)).statistic)
    return math.sqrt(max(0.0, 2 * half / (1 + half))) if half > -1 else None


def _rank_correlation(predicted: np.ndarray, objective: np.ndarray) -> MetricValue:
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(objective), size=len(objective)) for _ in range(_REPLICATES)]
    replicates = [float(spearmanr(predicted[d], objective[d]).statistic) for d in draws]
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    return MetricValue(float(spearmanr(predicted, objective).statistic), float(low), float(high), len(objective))


def _values(metrics: Mapping[str, Estimate]) -> dict[str, MetricValue]:
    return {name: MetricValue(e.value, e.low, e.high, e.images) for name, e in metrics.items()}


def _metric_infos(study: Workspace, rows: list[Row]) -> list[MetricInfo]:
    """Of what the rows were measured by; without rows, of what the objective is made of."""
    names = list(rows[0].metrics) if rows else study.objective.metrics
    return [MetricInfo(m.name, m.title, m.unit, m.higher_is_better, m.explanation) for m in map(metric, names)]


def _shown(rows: list[Row]) -> list[Row]:
    """Full precision, ours, and for each width the best uniform row, so that the grid flatters nobody."""
    full = [r for r in rows if r.kind == "full"]
    ours = [r for r in rows if r.kind == "ours"]
    best = []
    for width in ("-4", "-3"):
        uniform = [r for r in rows if r.kind == "uniform" and r.name.endswith(width)]
        best += sorted(uniform, key=lambda r: -r.metrics["psnr"].value)[:1]
    return full + ours + best


def _captions(study: Workspace, rows: list[Row]) -> list[str | int]:
    generation = study.generator.generation
    found = [generation.input(100_000 + i) for i in range(len(rows[0].pictures))]
    return [f"image {i + 1}" if value is None else value for i, value in enumerate(found)]


def _points(study: Workspace, choice: Choice | None, rows: list[Row]) -> list[MeasuredPoint]:
    """Everything measured but layers alone; what was chosen for other budgets is named."""
    objective = study.objective
    chosen = {made.configuration.digest: made for made in study.choices()}
    points, seen = [], {choice.configuration.digest} if choice else set()
    for role, kind in _ROLES.items():
        for record in study.records.all(role):
            e, digest = _estimate(objective, record), record.configuration.digest
            shown, label = kind, f"{kind} {record.number}"
            if role in ("candidate", "final") and digest in chosen and digest not in seen:
                shown, label = "choice", f"chosen for {chosen[digest].bits_asked:g} bits"
                seen.add(digest)
            points.append(MeasuredPoint(record.average_bits, e.value, e.low, e.high, shown, label))
    for row in rows:
        if row.kind in ("uniform", "ours") and all(name in row.metrics for name in objective.metrics):
            e = _row_estimate(objective, row)
            points.append(MeasuredPoint(row.average_bits, e.value, e.low, e.high, row.kind, row.name))  # type: ignore[arg-type]
    return points


def _estimate(objective: Objective, record: Record) -> Estimate:
    """With an interval over images, or none where a metric belongs to the set of them."""
    images = objective.per_image(record)
    if images is not None:
        return mean_estimate(images)
    if objective.text in record.measurement.sets:
        return record.measurement.sets[objective.text]
    value = objective.value(record)
    return Estimate(value, value, value, 0)


def _row_estimate(objective: Objective, row: Row) -> Estimate:
    """A metric's own interval; an expression of several has none here."""
    if objective.text in row.metrics:
        return row.metrics[objective.text]
    value = objective.of({name: e.value for name, e in row.metrics.items()}, row.average_bits, row.configuration)
    return Estimate(value, value, value, 0)


def _commands(study: Workspace, choice: Choice) -> list[str]:
    """What repeats the study in a folder that holds its study.yaml."""
    folder, bits = study.folder.name, f"--bits {choice.bits_asked:g}"
    measured = len(study.records.all("sample"))
    steps = [f"measure {folder} --configs {measured}"]
    if choice.images is not None:
        steps += [f"search {folder} {bits} --images {choice.images}", f"fit {folder}", f"explain {folder}"]
    else:
        steps += [f"fit {folder}", f"explain {folder}", f"choose {folder} {bits}"]
    steps += [f"export {folder} {folder}/packed-{choice.bits_asked:g} {bits}", f"report {folder} {bits}"]
    return [f"qua2sedimo {step}" for step in steps]


def _provenance(study: Workspace, choice: Choice | None, explained: bool) -> dict[str, str]:
    samples, space = study.records.all("sample"), study.space
    seconds = sum(r.measurement.seconds for r in samples)
    return {
        "study": study.folder.name,
        "options": f"{study.settings.options}: {', '.join(map(str, sorted(space.union)))}",
        "seed": str(study.settings.seed),
        "arguments": ", ".join(f"{k}={v}" for k, v in study.settings.arguments.items()),
        "measured": f"{len(samples)} random configurations × {study.settings.images} images in {seconds:.0f} s",
        **({"predictor": f"{len(fitted(study)[0].folds)} folds, loss {study.settings.loss}"} if explained else {}),
        **({"chosen by": _chosen_by(choice)} if choice else {}),
        **versions(),
    }


def _chosen_by(choice: Choice) -> str:
    return f"{choice.origin}, best of {len(choice.candidates)} measured candidates"
