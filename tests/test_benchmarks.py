"""Benchmarks say what they measure, and what they need, before they measure anything."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(
    path for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_explains_itself(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))  # as if it were started from the shell
    for name in [n for n in sys.modules if n.partition(".")[0] in {s.stem for s in script.parent.glob("*.py")}]:
        monkeypatch.delitem(sys.modules, name)  # a test package may have the name of a benchmark
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python benchmarks/{script.name}" in shown and len(shown.splitlines()) > 8
