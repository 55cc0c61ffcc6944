"""What a run would take: every stage that it has, from a plan; nothing is left behind."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.commands.conftest import FEW_STEPS, model, run  # noqa: F401 - fixtures
from tests.conftest import small_pipeline, small_settings
from tests.study.test_planning import PLAN

from qua2sedimo import Study
from qua2sedimo.study.stages.dry_run import dry_run
from qua2sedimo.terminal.plan import dry_run_table


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study.create(tmp_path_factory.mktemp("dry") / "study", small_settings(), small_pipeline())


@pytest.mark.parametrize(
    ("effort", "stages"),
    [
        ("quick", ["observe", "quantize", "polish", "export"]),
        ("search", ["observe", "quantize", "measure", "search", "polish", "export"]),
        ("paper", ["observe", "quantize", "measure", "export"]),
    ],
)
def test_a_run_has_these_stages(study: Study, effort: str, stages: list[str]) -> None:
    found = dry_run(study.workspace, PLAN, effort, 96)  # type: ignore[arg-type]
    assert [stage.name.split()[0] for stage in found] == stages
    costs = {stage.name.split()[0]: stage for stage in found}
    assert costs["observe"].seconds == PLAN.observe and costs["observe"].disk == PLAN.statistics
    assert costs["quantize"].seconds == PLAN.quantize and costs["quantize"].disk == PLAN.bank
    if effort != "quick":
        assert costs["measure"].images == 80 * 16 and costs["measure"].seconds == PLAN.workers[1]
    assert costs["export"].seconds == pytest.approx(PLAN.load + costs["export"].images * 10 / 16)


def test_what_is_done_already_is_left_out(study: Study) -> None:
    done = replace(PLAN, observe=0.0, quantize=0.0, measured=100, workers={1: 0.0})
    found = dry_run(study.workspace, done, "search", 96)
    assert not {"observe", "quantize"} & {stage.name.split()[0] for stage in found}
    assert sum(stage.disk for stage in found if stage.name.startswith("measure")) == 10**6


def test_the_table_fits_80_columns_and_adds_up(study: Study) -> None:
    stages = dry_run(study.workspace, PLAN, "search", 96)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(dry_run_table(stages, PLAN))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and f"{sum(s.images for s in stages):,}" in text


def test_run_with_dry_run_prints_it_and_leaves_nothing(run, model: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    words = ("run", model, tmp_path / "study", "--prompt", 1, "--arguments", FEW_STEPS, "--images", 2, "--dry-run")
    ended = run(*words, "--effort", "quick")
    assert ended.status == 0, ended.err
    assert "polish the choice" in ended.out and "measure random" not in ended.out and "memory" in ended.out
    assert not (tmp_path / "study").exists()
    assert "as small as" in run(*words, "--bits", 1).err  # what a run refuses
