"""From measurements to sensitivity: fit, explain."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from qua2sedimo.commands.app import StudyFolder, app, onward
from qua2sedimo.formats.text import command
from qua2sedimo.terminal.console import console, interval, say
from qua2sedimo.terminal.progress import progress

if TYPE_CHECKING:
    from qua2sedimo.sensitivity import ExpectedDamage, Sensitivity
    from qua2sedimo.study import Study

_PANEL = "Analyse"


class Tables(str, Enum):
    csv = "csv"
    parquet = "parquet"


@app.command(rich_help_panel=_PANEL)
def fit(
    study: StudyFolder,
    loss: Annotated[
        str | None, typer.Option(help="srcc, lambdarank, hybrid or mse. Default: that of study.yaml.")
    ] = None,
) -> None:
    """Fit the predictor to the measurements, and report how well it ranks configurations it was not fitted to."""
    from qua2sedimo.predictor import FitSettings
    from qua2sedimo.report.fill.predictor import predictor_quality
    from qua2sedimo.study import Study

    opened = Study(study)
    settings = FitSettings(loss=loss or opened.workspace.settings.loss, seed=opened.workspace.settings.seed)
    with progress() as report:
        opened.fit(settings, report)
    quality = predictor_quality(opened.workspace)
    for name, value in {"predictor": quality.rank_correlation, **quality.baselines}.items():
        ends = f" ({interval(value, '.3f')})" if interval(value) else ""
        say(f"{name:<26} rank correlation {value.value:.3f}{ends}")
    if quality.noise_ceiling is not None:
        say(f"{'noise ceiling of labels':<26} {quality.noise_ceiling:.3f}")
    say(f"Next: {command('explain', study)}")


@app.command(rich_help_panel=_PANEL)
def explain(
    study: StudyFolder,
    tables: Annotated[Tables, typer.Option("--tables", help="Format of the written tables.")] = Tables.csv,
) -> None:
    """Show what is sensitive: by gradients and, once a predictor is fitted, by the measured images."""
    from qua2sedimo.formats.tabular import require_pyarrow
    from qua2sedimo.sensitivity import expected_by, step_distributions
    from qua2sedimo.study import Study
    from qua2sedimo.terminal.sensitivity import expected_table, sensitivity_table

    if tables is Tables.parquet:
        require_pyarrow()
    opened = Study(study)
    with progress() as report:
        expected = opened.expected_damage(tables.value, report)
    for by in ("operation", "stage", "block"):
        if len(sums := expected_by(expected, by)) > 1:
            console.print(expected_table(sums, by, opened.workspace.bank.changes.source))
    fitted = (study / "predictor" / "predictor.json").exists()
    if expected and not fitted:
        _print_sources(opened, expected, None)
        say(f"All layers: {study / f'sensitivity-expected.{tables.value}'}")
        say(onward(study, compensates=True))
        return
    found = opened.sensitivity(tables.value)
    _print_sources(opened, expected, found)
    for by in ("operation", "stage", "block"):
        groups = step_distributions(found.steps, by)
        if len(groups) > 1:
            console.print(sensitivity_table(groups, by, found.unit))
    if not found.steps:
        say("No layer has options of about 4 and about 3 bits, so the cost of a bit is unknown.")
    for sentence in found.findings:
        say(f"• {sentence}")
    if found.steps and not found.findings:
        say("No group stands out, since the folds disagree: measure more configurations.")
    names = f"{study / f'sensitivity.{tables.value}'}, {study / f'sensitivity-groups.{tables.value}'}"
    say(f"All options of all layers, and distributions by group: {names}")
    say(f"Next: {command('choose', study, '--bits', 3.5)}")


def _print_sources(study: Study, expected: list[ExpectedDamage], found: Sensitivity | None) -> None:
    """What gradients, records and layers alone say, if at least two of them say something."""
    from qua2sedimo.sensitivity import shares_by
    from qua2sedimo.study.stages.explain import known_sources
    from qua2sedimo.terminal.sensitivity import sources_table

    known = known_sources(study.workspace, expected, found)
    groups = shares_by(known, study.workspace.graph.layers, "operation")
    if len(known) > 1 and len(groups) > 1:
        console.print(sources_table(known, groups, "operation"))
