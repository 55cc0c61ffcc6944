"""What gradients, records and layers alone say, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.conftest import small_pipeline, small_settings
from typer.testing import CliRunner

from qua2sedimo import Study
from qua2sedimo.cli import app
from qua2sedimo.predictor import FitSettings
from qua2sedimo.sensitivity import Source, agreements, shares_by
from qua2sedimo.study.evidence import measure_singles
from qua2sedimo.study.stages.explain import known_sources


def test_agreement_is_the_rank_correlation_over_layers_that_both_know() -> None:
    chance = np.random.default_rng(0)
    first, second = chance.random(30), chance.random(30)
    names = [f"layer{i}" for i in range(30)]
    known = [
        Source("a", dict(zip(names, first))),
        Source("b", dict(zip(names[5:], second[5:]))),
        Source("c", {"x": 1.0}),
    ]
    (found,) = agreements(known)
    assert (found.first, found.second, found.correlation.images) == ("a", "b", 25)
    rank = found.correlation
    assert rank.value == pytest.approx(spearmanr(first[5:], second[5:]).statistic)
    assert rank.low < rank.value < rank.high


def test_sources_that_are_equal_agree_and_constant_ones_say_nothing() -> None:
    shares = {f"layer{i}": float(i) for i in range(12)}
    same, constant = Source("b", shares), Source("c", dict.fromkeys(shares, 1.0))
    (found,) = agreements([Source("a", shares), same, constant])
    rank = found.correlation
    assert (rank.value, rank.low, rank.high) == pytest.approx((1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study.create(tmp_path_factory.mktemp("sources") / "study", small_settings(images=2), small_pipeline())
    study.quantize()
    return study


def test_of_a_study_that_measured_nothing_gradients_alone_are_known(known: Study) -> None:
    (found,) = known_sources(known.workspace, known.expected_damage(), None)
    assert found.name == "gradients" and sum(found.shares.values()) == pytest.approx(1.0)


def test_gradients_records_and_layers_alone_stand_side_by_side(known: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = known.workspace
    measure_singles(inside)
    known.measure(20)
    known.fit(FitSettings(epochs=2))
    found = known_sources(inside, known.expected_damage(), known.sensitivity())
    assert [s.name for s in found] == ["gradients", "records", "layers alone"]
    assert all(sum(s.shares.values()) == pytest.approx(1.0) for s in found)
    assert set(found[2].shares) == set(inside.space.layers)
    groups = shares_by(found, inside.graph.layers, "operation")
    for i in range(3):
        assert sum(group.shares[i] or 0.0 for group in groups) == pytest.approx(1.0)
    inside.switch.restore()
    load = lambda *_: small_pipeline()  # noqa: E731
    monkeypatch.setattr("qua2sedimo.study.model.load_pipeline", load)
    shown = CliRunner().invoke(app, ["explain", str(known.folder)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "by layers alone" in shown.output and "Rank correlation of layers: gradients and records" in shown.output


def test_the_table_is_left_out_where_a_single_source_knows_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qua2sedimo.study.model.load_pipeline", lambda *_: small_pipeline())
    study = Study.create(tmp_path / "study", small_settings(images=2), small_pipeline())
    study.quantize()
    shown = CliRunner().invoke(app, ["explain", str(study.folder)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0 and "from each source" not in shown.output
