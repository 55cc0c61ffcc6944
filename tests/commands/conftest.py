"""The command line run in this process, and small models and studies to run it on."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from tests.conftest import small_pipeline

from qua2sedimo import cli
from qua2sedimo.predictor import FitSettings

FEW_STEPS = '{"num_inference_steps": 2, "guidance_scale": 1.0}'


class Ended:
    """How a command ended: its status, and what it printed where."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs the command line as its entry point does, in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def go(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["qua2sedimo", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return Ended(status, said.out, said.err)

    return go


@pytest.fixture
def refused(run):  # type: ignore[no-untyped-def]
    """Runs a command that must fail with status 1 and a message, and gives the message."""

    def go(*arguments: object) -> str:
        ended = run(*arguments)
        assert ended.status == 1, ended.out
        assert ended.err.startswith("error: ")
        assert "Traceback" not in ended.err + ended.out
        return str(ended.err)

    return go


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "small"
    small_pipeline(classes=1000).save_pretrained(folder)
    return folder


@pytest.fixture
def study(run, model: Path, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A new study of the small pipeline."""
    folder = tmp_path / "study"
    options = ("--options", "uaq-2,uaq-3,uaq-4,uaq-6,kmeans_a-4", "--images", 2, "--observe", 8)
    ended = run("init", model, folder, "--prompt", 1, "--prompt", 2, "--arguments", FEW_STEPS, *options)
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("qua2sedimo.predictor.FitSettings", "qua2sedimo.study.stages.fit.FitSettings"):
        monkeypatch.setattr(place, partial(FitSettings, epochs=40, channels=8, hops=1))
