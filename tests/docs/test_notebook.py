"""The notebook runs from its first cell to its last, on fewer images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.pages import ROOT

NOTEBOOK = ROOT / "docs" / "research" / "tour.ipynb"
#: What makes it long, and what a test takes.
FEWER = {"observe=32": "observe=4", "images=4": "images=2"}


def code() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in code():
        for long, short in FEWER.items():
            cell = cell.replace(long, short)
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    said = capsys.readouterr().out
    assert "4 images" in said and "PSNR" in said
    assert (tmp_path / "tour-packed" / "qua2sedimo.json").is_file()


def test_the_notebook_holds_no_output() -> None:
    """Outputs would have paths and versions of the machine it ran on."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells)
    text = "\n".join(code())
    assert all(long in text for long in FEWER)
