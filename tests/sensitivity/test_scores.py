"""A synthetic objective whose sensitive layers are known: the scores must name them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import Task
from tests.sensitivity.untrained import SENSITIVE

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.predictor import Ensemble, FitSettings, fit_ensemble
from qua2sedimo.sensitivity import Scores, op_scores

SETTINGS = FitSettings(epochs=150, folds=3, channels=16, hops=2)


@pytest.fixture(scope="module")
def ensemble(task: Task) -> Ensemble:
    choices = task.choices(120, seed=4)
    return fit_ensemble(task.encoding, choices, task.quality(choices, SENSITIVE), SETTINGS)


@pytest.fixture(scope="module")
def scores(task: Task, ensemble: Ensemble) -> Scores:
    return op_scores(task.space, task.encoding, ensemble)


def test_in_sensitive_layers_options_of_less_error_score_higher(task: Task, scores: Scores) -> None:
    for layer in SENSITIVE:
        errors = task.bank.errors[layer]
        order = sorted(task.space.options[layer], key=lambda o: errors[o].relative_mse)
        found = [scores.layers[layer][o].score for o in order]
        assert np.corrcoef(np.arange(len(found)), found)[0, 1] < -0.8
        assert found[0] == max(found) and found[-1] == min(found)


def test_every_option_of_every_layer_is_scored_as_the_sum_over_folds(task: Task, scores: Scores) -> None:
    assert {n: set(o) for n, o in scores.layers.items()} == {n: set(o) for n, o in task.space.options.items()}
    for options in scores.layers.values():
        for s in options.values():
            assert len(s.folds) == SETTINGS.folds
            assert s.score == pytest.approx(sum(s.folds))
            assert s.spread == pytest.approx(np.std(s.folds, ddof=1) * len(s.folds) ** 0.5)
    layer = task.space.layers[0]
    for option, s in scores.layers[layer].items():
        assert scores.total()[layer][option] == s.score
        assert [scores.fold(k)[layer][option] for k in range(SETTINGS.folds)] == list(s.folds)


def test_the_scores_of_a_fold_have_mean_zero_and_the_hops_weight_as_spread(scores: Scores, ensemble: Ensemble) -> None:
    for k, fold in enumerate(ensemble.folds):
        values = [s for options in scores.fold(k).values() for s in options.values()]
        assert np.mean(values) == pytest.approx(0, abs=1e-4)
        assert np.std(values) == pytest.approx(fold.hop_weights[0], rel=1e-3)


def test_a_configuration_at_op_level_is_the_sum_of_its_layers_scores(task: Task, scores: Scores) -> None:
    (choice,) = task.choices(1, seed=9)
    configuration = task.space.decode(choice)
    expected = [sum(scores.fold(k)[n][configuration[n]] for n in task.space.layers) for k in range(SETTINGS.folds)]
    np.testing.assert_allclose(scores.level(task.space, choice[None])[0], expected)


def test_an_ensemble_that_ranks_nothing_is_refused(task: Task) -> None:
    choices = task.choices(12)
    flat = fit_ensemble(task.encoding, choices, np.zeros(12), FitSettings(epochs=5, folds=3, channels=4, hops=1))
    with pytest.raises(Qua2SeDiMoError, match="no fold of the predictor ranks") as caught:
        op_scores(task.space, task.encoding, flat)
    assert "Measure more" in str(caught.value.remedy)


def test_scores_come_back_from_their_file_as_they_were(scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    scores.save(path, "owner")
    again = Scores.load(path, "owner")
    assert {n: list(options) for n, options in again.layers.items()} == {
        n: list(options) for n, options in scores.layers.items()
    }
    for layer, options in scores.layers.items():
        for option, s in options.items():
            found = again.layers[layer][option]
            assert found.folds == s.folds
            assert (found.score, found.spread) == pytest.approx((s.score, s.spread), rel=1e-5, abs=1e-6)
    with pytest.raises(Qua2SeDiMoError, match="belongs to another fit"):
        Scores.load(path, "another")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 1, "owner": "owner"})])
def test_a_damaged_file_of_scores_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sensitivity.json"
    path.write_text(content)
    with pytest.raises(Qua2SeDiMoError, match=r"sensitivity\.json"):
        Scores.load(path, "owner")
