"""From an export, and its study where that is at hand, to the plain data of its model card."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.exported import read_evaluation
from qua2sedimo.report.data import OWN, CardData, CardPicture, OperationOptions, TableRow
from qua2sedimo.report.fill.base_model import base_model, place_of_base
from qua2sedimo.report.fill.packed_model import PackedModel, PackedUnit, loading_code, read_packed
from qua2sedimo.report.fill.study import metric_info, report_data
from qua2sedimo.study.choices import Choice
from qua2sedimo.study.stages.compare import Row, kept_rows
from qua2sedimo.study.workspace import Workspace

_PICTURES = 4  # inputs on the card


def card_data(
    out: Path, study: Path | None = None, base: str | None = None, licence: str | None = None, repo: str | None = None
) -> CardData:
    """The data of the card of the export ``out``.

    Quality and pictures are those of ``study``, by default of the study in whose folder ``out`` lies, if that study
    made it; measurements of ``evaluate`` on the export itself come first. ``base`` and ``licence`` replace what is
    found; ``repo`` is the hub's name of the export. Raises :class:`Qua2SeDiMoError` if ``out`` is no export, or not one
    of ``study``, or was changed after it was evaluated.
    """
    model = read_packed(out)
    extra, info = model.extra, model.info
    found = base_model(base or place_of_base(out, str(extra.get("model", "")), study))
    if licence is not None:
        found = replace(found, licence=licence.lower(), licence_name="", licence_link="", note="")
    made = {"chosen by": str(extra["origin"])} if "origin" in extra else {}
    data = CardData(
        title=f"{found.name or model.denoiser} at {info['average_bits']:.2f} bits",
        base=found,
        pipeline=model.pipeline.__name__ if model.pipeline else "",
        denoiser=_denoiser(model),
        whole=model.whole,
        average_bits=info["average_bits"],
        weights=info["weights"],
        quantized_bytes=info["quantized_bytes"],
        other_bytes=info["denoiser_bytes"] - info["quantized_bytes"],
        act_bits=model.act_bits,
        operations=_operations(model.units),
        code=loading_code(model, repo or out.resolve().name),
        task=model.task,
        provenance={**made, **extra.get("versions", {}), "diffusers": info["diffusers"]},
    )
    return _with_study(_with_evaluation(data, out), model, study)


def _denoiser(model: PackedModel) -> str:
    """The class of the denoiser; with their components if several are packed, or one of several."""
    named = len(model.components) > 1 or model.whole
    return f"{model.denoiser} ({', '.join(model.components)})" if named else model.denoiser


def _with_evaluation(data: CardData, out: Path) -> CardData:
    """With what ``evaluate`` measured on the export, if anything."""
    found = read_evaluation(out)
    if found is None:
        return data
    rows = [
        TableRow("full precision", "full", 16.0, 2 * data.weights, found.full),
        TableRow(OWN, "ours", data.average_bits, data.quantized_bytes, found.metrics),
    ]
    called = ", ".join(["seed " + str(found.seed), *(f"{name} {value}" for name, value in found.arguments.items())])
    inputs = f"{len(found.inputs)} input{'s'[: len(found.inputs) != 1]}, " if found.inputs else ""
    how = f"Measured on this export itself, compared with full precision on the same noise: {inputs}{called}."
    return replace(data, measured=rows, measured_infos=[*map(metric_info, found.metrics)], measured_how=how)


def _operations(units: list[PackedUnit]) -> list[OperationOptions]:
    groups: dict[str, list[PackedUnit]] = {}
    for unit in units:
        groups.setdefault(unit.operation, []).append(unit)
    return [
        OperationOptions(
            operation,
            dict(Counter(str(unit.option) for unit in group)),
            sum(unit.weights for unit in group),
            sum(unit.option.nbytes(unit.shape) for unit in group),
        )
        for operation, group in groups.items()
    ]


def _with_study(data: CardData, model: PackedModel, asked: Path | None) -> CardData:
    """With quality, pictures and commands of the study that made the export, if it is at hand."""
    folder = asked or model.folder.resolve().parent
    if asked is None and not (folder / "study.yaml").is_file():
        return data
    study = Workspace(folder)
    choice = next((made for made in study.choices() if _holds(study, model, made)), None)
    if choice is None:
        if asked is not None:
            raise Qua2SeDiMoError(
                f"{model.folder} is none of the choices of {asked}", "Name the study it was exported from, or none."
            )
        return data
    rows = [row for row in kept_rows(study, choice) if row.kind != "activations" or _is_own(row, model)]
    ours = next((row for row in rows if _is_own(row, model)), None)
    known = report_data(study, choice, rows if ours else [], explained=False)
    return replace(
        data,
        rows=sorted(known.table, key=lambda row: ("full", "ours", "activations", "uniform", "outside").index(row.kind)),
        own_row=ours.name if ours else "",
        metric_infos=known.metric_infos,
        pictures=_pictures(rows[0], ours, known.captions) if ours else [],
        provenance={**known.provenance, **data.provenance, "chosen by": known.provenance["chosen by"]},
        commands=known.commands,
    )


def _is_own(row: Row, model: PackedModel) -> bool:
    """Whether a row is of the export as it runs, with its activations rounded or not."""
    return row.kind == "ours" if model.act_bits is None else row.name.endswith(f"A{model.act_bits}")


def _holds(study: Workspace, model: PackedModel, choice: Choice) -> bool:
    """Whether the export has exactly the options of ``choice``; copies are stored under one of their names."""
    packed = {(unit.module, unit.span): unit.option for unit in model.units}
    if len(packed) != len(choice.configuration):
        return False
    for name, option in choice.configuration.items():
        unit = study.graph.layers.get(name)
        names = (unit.module, *unit.copies) if unit else ()
        if unit is None or option not in [packed.get((module, unit.span)) for module in names]:
            return False
    return True


def _pictures(full: Row, ours: Row, captions: list[str]) -> list[CardPicture]:
    shown = zip(captions[:_PICTURES], full.pictures, ours.pictures)
    return [CardPicture(caption, a.squeeze(), b.squeeze()) for caption, a, b in shown]
