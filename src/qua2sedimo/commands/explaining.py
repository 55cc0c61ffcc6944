"""From measurements to sensitivity: fit, explain."""

from __future__ import annotations

from typing import Annotated

import typer

from qua2sedimo.commands.app import StudyFolder, app


@app.command()
def fit(
    study: StudyFolder,
    loss: Annotated[str | None, typer.Option(help="srcc, lambdarank, hybrid or mse.")] = None,
) -> None:
    """Fit the predictor to the measured configurations, and say how well it ranks those it never saw."""
    from qua2sedimo.predictor import FitSettings
    from qua2sedimo.report.assemble import predictor_quality
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    chosen = FitSettings(loss=loss or opened.settings.loss, seed=opened.settings.seed)
    with progress() as report:
        ensemble = opened.fit(chosen, report)
    quality = predictor_quality(opened, ensemble)
    rows = {"predictor": quality.rank_correlation, **quality.baselines}
    for name, value in rows.items():
        console.print(
            f"{name:<26} rank correlation {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]", markup=False
        )
    if quality.noise_ceiling is not None:
        console.print(f"{'noise ceiling of labels':<26} {quality.noise_ceiling:.3f}")
    console.print(f"Next: qua2sedimo explain {study}")


@app.command()
def explain(study: StudyFolder) -> None:
    """Score every option of every layer, and print what a bit costs by operation and by block."""
    from qua2sedimo.report.assemble import findings
    from qua2sedimo.sensitivity import step_costs, strip
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, sensitivity_table

    opened = Study(study)
    scores = opened.explain()
    costs = step_costs(opened.space, scores)
    for by in ("operation", "block"):
        console.print(sensitivity_table(strip(costs, opened.graph.layers, by), by))
    for sentence in findings(opened, scores):
        console.print(sentence)
    console.print(f"Next: qua2sedimo choose {study} --bits 3.5")
