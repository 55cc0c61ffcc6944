"""From measurements to sensitivity: fit, explain."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from qua2sedimo.commands.app import StudyFolder, app


class Tables(str, Enum):
    csv = "csv"
    parquet = "parquet"


@app.command()
def fit(
    study: StudyFolder,
    loss: Annotated[str | None, typer.Option(help="srcc, lambdarank, hybrid or mse.")] = None,
) -> None:
    """Fit the predictor to the measured configurations, and say how well it ranks those it never saw."""
    from qua2sedimo.predictor import FitSettings
    from qua2sedimo.report.fill.predictor import predictor_quality
    from qua2sedimo.study.facade import Study
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    chosen = FitSettings(loss=loss or opened.workspace.settings.loss, seed=opened.workspace.settings.seed)
    with progress() as report:
        opened.fit(chosen, report)
    quality = predictor_quality(opened.workspace)
    rows = {"predictor": quality.rank_correlation, **quality.baselines}
    for name, value in rows.items():
        console.print(
            f"{name:<26} rank correlation {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]", markup=False
        )
    if quality.noise_ceiling is not None:
        console.print(f"{'noise ceiling of labels':<26} {quality.noise_ceiling:.3f}")
    console.print(f"Next: qua2sedimo explain {study}")


@app.command()
def explain(
    study: StudyFolder,
    tables: Annotated[Tables, typer.Option("--tables", help="The files of the tables.")] = Tables.csv,
) -> None:
    """Score every option of every layer; print what a bit costs, and where."""
    from qua2sedimo.sensitivity import step_distributions
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, sensitivity_table

    found = Study(study).sensitivity(tables.value)
    for by in ("operation", "stage", "block"):
        groups = step_distributions(found.steps, by)
        if len(groups) > 1:
            console.print(sensitivity_table(groups, by, found.unit))
    if not found.steps:
        console.print("No layer has options of about 4 and about 3 bits: nothing can be said of what a bit costs.")
    for sentence in found.findings:
        console.print(f"• {sentence}", markup=False)
    if found.steps and not found.findings:
        console.print("The folds do not agree on what costs most: measure more configurations.")
    names = f"{study / f'sensitivity.{tables.value}'}, {study / f'sensitivity-groups.{tables.value}'}"
    console.print(f"All options of all layers, and distributions by group: {names}", markup=False, soft_wrap=True)
    console.print(f"Next: qua2sedimo choose {study} --bits 3.5")
