"""Five folds: what trains, what selects and what judges are never the same records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.conftest import Task

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.predictor import Ensemble, FitSettings, fit_ensemble
from qua2sedimo.predictor.ensemble import Fold
from qua2sedimo.predictor.training import Data, predict

QUICK = FitSettings(epochs=20, channels=8, hops=2, folds=3)
COUNT = 45


@pytest.fixture(scope="module")
def records(task: Task) -> tuple[np.ndarray, np.ndarray]:
    choices = task.choices(COUNT)
    return choices, task.quality(choices, {"proj_out_2": 40.0})


@pytest.fixture(scope="module")
def ensemble(task: Task, records: tuple[np.ndarray, np.ndarray]) -> Ensemble:
    return fit_ensemble(task.encoding, *records, QUICK)


def test_test_parts_are_disjoint_and_cover_every_record(ensemble: Ensemble) -> None:
    assert sorted(i for fold in ensemble.folds for i in fold.test) == list(range(COUNT))
    positions, predicted = ensemble.out_of_fold()
    assert positions.tolist() == list(range(COUNT)) and predicted.shape == (COUNT,)


def same(a: Fold, b: Fold) -> bool:
    states = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(t, states[1][name]) for name, t in states[0].items())


def test_a_folds_test_records_have_no_part_in_its_network(
    task: Task, records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble
) -> None:
    """Nonsense in place of a fold's own test labels leaves that fold's network and predictions as they were."""
    choices, objective = records
    for k, fold in enumerate(ensemble.folds):
        changed = objective.copy()
        changed[fold.test] = -1000.0
        again = fit_ensemble(task.encoding, choices, changed, QUICK).folds
        assert same(again[k], fold) and again[k].predicted == fold.predicted
        assert again[k].hop_weights == fold.hop_weights
        assert not all(same(a, b) for a, b in zip(again, ensemble.folds, strict=True))


def test_a_folds_selection_records_do_not_train_its_hops(task: Task, records: tuple[np.ndarray, np.ndarray]) -> None:
    """They choose between the states at the looks, here two, and whether the readout is kept; the damages are fitted to
    them; that is all."""
    choices, objective = records
    once = FitSettings(**{**vars(QUICK), "epochs": 1})  # a look before the only epoch, and one after it
    selection = fit_ensemble(task.encoding, choices, objective, once).folds[1].test
    rng, hops, readouts = np.random.default_rng(0), [], []
    for _ in range(5):
        changed = objective.copy()
        changed[selection] = rng.permutation(changed[selection]) + rng.normal()
        network = fit_ensemble(task.encoding, choices, changed, once).folds[0].network
        hops.append(torch.cat([p.flatten() for p in network.hops.parameters()]))
        readouts.append(torch.cat([p.flatten() for p in network.regress.parameters()]))
    assert len(torch.stack(hops).unique(dim=0)) <= 2
    assert len(torch.stack(readouts).unique(dim=0)) <= 4


def test_hop_weights_come_from_the_selection_part_and_are_never_negative(
    task: Task, records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble
) -> None:
    choices, objective = records
    flat = objective.copy()
    flat[ensemble.folds[1].test] = objective.mean()  # nothing to rank where fold 0 is selected
    for fold in ensemble.folds:
        assert len(fold.hop_weights) == QUICK.hops + 1
        assert all(0 < weight <= 1 for weight in fold.hop_weights)
    again = fit_ensemble(task.encoding, choices, flat, QUICK).folds
    assert again[0].hop_weights == [0.0] * (QUICK.hops + 1)
    assert max(again[1].hop_weights) > 0


class Killed(Exception):
    """Stands for the kill."""


def test_a_fit_that_was_killed_goes_on_with_the_fold_it_was_at(
    task: Task, records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble, tmp_path: Path
) -> None:
    seen: list[int] = []

    def kill(fold: int, epoch: int) -> None:
        if fold == 2:
            raise Killed

    with pytest.raises(Killed):
        fit_ensemble(task.encoding, *records, QUICK, kill, kept=(tmp_path, "owner"))
    (tmp_path / "fold1.safetensors").write_bytes(b"damaged")
    again = fit_ensemble(
        task.encoding, *records, QUICK, lambda fold, epoch: seen.append(fold) if epoch < 20 else None,
        kept=(tmp_path, "owner"),
    )  # fmt: skip
    assert set(seen) == {1, 2}
    assert all(same(a, b) for a, b in zip(again.folds, ensemble.folds, strict=True))
    other = fit_ensemble(task.encoding, records[0], records[1] * 2, QUICK, kept=(tmp_path, "another owner"))
    assert not same(other.folds[0], ensemble.folds[0])


def test_roots_are_what_is_ranked_and_are_kept(
    task: Task, records: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    last = torch.tensor([task.encoding.nodes - 1])
    roots = [task.encoding.layer_nodes, last, last]
    found = fit_ensemble(task.encoding, *records, QUICK, roots=roots)
    assert found.folds[0].roots == [r.tolist() for r in roots]
    found.save(tmp_path, "owner")
    again = Ensemble.load(tmp_path, "owner").predict(task.encoding, records[0])
    assert np.array_equal(again, found.predict(task.encoding, records[0]))
    with pytest.raises(Qua2SeDiMoError, match="roots: 3 non-empty lists"):
        fit_ensemble(task.encoding, *records, QUICK, roots=roots[:2])


def test_predictions_of_unseen_records_rank_them(records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble) -> None:
    _, predicted = ensemble.out_of_fold()
    assert spearmanr(predicted, records[1]).statistic > 0.7


def test_predictions_are_in_units_of_the_objective(task: Task, records: tuple[np.ndarray, np.ndarray]) -> None:
    choices, objective = records
    shifted = fit_ensemble(task.encoding, choices, 10 * objective + 500, QUICK)
    _, predicted = shifted.out_of_fold()
    assert abs(np.median(predicted) - np.median(10 * objective + 500)) < 10 * objective.std()


def test_each_fold_predicts_its_own_test_records_as_it_reported(
    task: Task, records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble
) -> None:
    predicted = ensemble.predict(task.encoding, records[0])
    assert predicted.shape == (QUICK.folds, COUNT)
    for k, fold in enumerate(ensemble.folds):
        np.testing.assert_allclose(predicted[k, fold.test], fold.predicted, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_networks_and_leaves_the_global_random_state(
    task: Task, records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble
) -> None:
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    again = fit_ensemble(task.encoding, *records, QUICK)
    assert all(same(a, b) for a, b in zip(again.folds, ensemble.folds, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_splits_otherwise(task: Task, records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble) -> None:
    other = fit_ensemble(task.encoding, *records, FitSettings(**{**vars(QUICK), "seed": 1, "epochs": 5}))
    assert [fold.test for fold in other.folds] != [fold.test for fold in ensemble.folds]


def test_an_objective_without_any_difference_is_survived(task: Task, records: tuple[np.ndarray, np.ndarray]) -> None:
    flat = fit_ensemble(task.encoding, records[0], np.full(COUNT, 7.0), FitSettings(**{**vars(QUICK), "epochs": 12}))
    assert np.isfinite(flat.out_of_fold()[1]).all()
    assert all(weight == 0 for fold in flat.folds for weight in fold.hop_weights)


@pytest.mark.parametrize("epochs", [1, 5, 10, 20])
def test_any_number_of_epochs_can_be_asked_for(task: Task, records: tuple[np.ndarray, np.ndarray], epochs: int) -> None:
    found = fit_ensemble(task.encoding, *records, FitSettings(**{**vars(QUICK), "epochs": epochs}))
    assert np.isfinite(found.out_of_fold()[1]).all()


def test_too_few_records_are_refused_with_the_number_needed(task: Task, records: tuple[np.ndarray, np.ndarray]) -> None:
    choices, objective = records
    with pytest.raises(Qua2SeDiMoError, match="11 records are too few to fit 3 folds, 12 are needed") as caught:
        fit_ensemble(task.encoding, choices[:11], objective[:11], QUICK)
    assert "measure" in str(caught.value.remedy)


def test_a_saved_ensemble_comes_back_as_it_was(
    task: Task, records: tuple[np.ndarray, np.ndarray], ensemble: Ensemble, tmp_path: Path
) -> None:
    ensemble.save(tmp_path, "owner")
    again = Ensemble.load(tmp_path, "owner")
    assert np.array_equal(again.predict(task.encoding, records[0]), ensemble.predict(task.encoding, records[0]))
    for a, b in zip(again.folds, ensemble.folds, strict=True):
        assert (a.low, a.high, a.hop_weights, a.test, a.predicted) == (
            b.low,
            b.high,
            b.hop_weights,
            b.test,
            b.predicted,
        )
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_an_ensemble_of_another_owner_is_refused(ensemble: Ensemble, tmp_path: Path) -> None:
    ensemble.save(tmp_path, "owner")
    with pytest.raises(Qua2SeDiMoError, match="fitted to other records"):
        Ensemble.load(tmp_path, "another")


@pytest.mark.parametrize("damage", ["cut", "missing", "other shape", "no folds", "short fold"])
def test_damaged_files_are_refused_with_the_remedy(ensemble: Ensemble, tmp_path: Path, damage: str) -> None:
    ensemble.save(tmp_path, "owner")
    weights, summary, fold = (tmp_path / name for name in ("fold1.safetensors", "predictor.json", "fold1.json"))
    content, about = json.loads(summary.read_text()), json.loads(fold.read_text())
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing":
        weights.unlink()
    elif damage == "other shape":
        about["shape"][1] = 16
    elif damage == "no folds":
        del content["folds"]
    else:
        del about["hop_weights"]
    summary.write_text(json.dumps(content))
    fold.write_text(json.dumps(about))
    with pytest.raises(Qua2SeDiMoError, match=str(tmp_path)) as caught:
        Ensemble.load(tmp_path, "owner")
    assert "fit" in str(caught.value.remedy)


def test_what_the_readout_adds_spoils_no_ranking_where_it_learns_noise(task: Task) -> None:
    """Damages add here, and nothing else does."""
    choices, unseen = task.choices(60), task.choices(80, seed=9)
    noisy = task.quality(choices, {}) + 3 * np.random.default_rng(0).normal(size=60)
    ensemble, true = fit_ensemble(task.encoding, choices, noisy, FitSettings(epochs=6)), task.quality(unseen, {})
    data = Data(task.encoding, unseen, true, [torch.tensor(r) for r in ensemble.folds[0].roots])

    def ranks() -> list[float]:
        found = (predict(fold.network, data, np.arange(80))[0].numpy() for fold in ensemble.folds)
        return [float(spearmanr(values, true).statistic) for values in found]

    whole = ranks()
    for fold in ensemble.folds:
        torch.nn.init.zeros_(fold.network.regress[-1].weight)
        torch.nn.init.zeros_(fold.network.regress[-1].bias)
    assert np.mean(whole) > np.mean(ranks()) - 0.01
