"""What a damaged file costs: the remedy that the error names makes it again, and nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.conftest import small_pipeline, small_settings
from tests.study.synthetic import made_up, study_in

from qua2sedimo import Qua2SeDiMoError, Study
from qua2sedimo.predictor import FitSettings
from qua2sedimo.study.stages.export import export
from qua2sedimo.study.stages.frontier import named_choice

FIT = FitSettings(epochs=2, channels=4, hops=0)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 2 // 3] ^= 4
    path.write_bytes(raw)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["fold2.json", "fold2.safetensors"])
def test_a_damaged_fold_is_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made_up(monkeypatch)
    study = study_in(tmp_path / "study", rounding="nearest")
    study.measure(20)
    study.fit(FIT)
    before = contents(study.folder / "predictor")
    flip(study.folder / "predictor" / name)
    again = Study(study.folder, small_pipeline())
    with pytest.raises(Qua2SeDiMoError, match=name) as caught:
        again.explain()
    assert "qua2sedimo fit" in str(caught.value.remedy)
    again.fit(FIT)
    assert contents(study.folder / "predictor") == before
    assert again.explain().total()


def test_a_damaged_call_is_recorded_again(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", small_settings(options="uaq-2,uaq-4"), small_pipeline())
    study.observe()
    before = contents(study.folder / "statistics")
    flip(victim := next((study.folder / "statistics" / "calls").glob("*.safetensors")))
    with pytest.raises(Qua2SeDiMoError, match=victim.name) as caught:
        Study(study.folder, small_pipeline()).quick(3.5)
    assert "Move it and statistics/index.json away" in str(caught.value.remedy)
    victim.unlink()
    (study.folder / "statistics" / "index.json").rename(tmp_path / "index.json")
    Study(study.folder, small_pipeline()).observe()
    assert contents(study.folder / "statistics") == before


def test_a_damaged_list_of_an_exports_files_names_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch)
    study = study_in(tmp_path / "study", rounding="nearest")
    study.search(3.6, 110)
    choice = named_choice(study.workspace, "3.6", None)
    assert choice is not None
    export(study.workspace, choice, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    flip(tmp_path / "out" / "qua2sedimo.json")
    with pytest.raises(Qua2SeDiMoError, match=r"qua2sedimo\.json") as caught:
        export(study.workspace, choice, tmp_path / "out")
    assert "export to another folder" in str(caught.value.remedy)
    weights = next((tmp_path / "other" / "transformer").glob("*.safetensors"))
    flip(weights)
    with pytest.raises(Qua2SeDiMoError, match=weights.name) as caught:
        export(study.workspace, choice, tmp_path / "other")
    assert "Move it away" in str(caught.value.remedy)
    weights.rename(tmp_path / "moved")
    export(study.workspace, choice, tmp_path / "other")
    assert weights.exists()
