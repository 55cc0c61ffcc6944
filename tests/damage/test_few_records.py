"""Few records of a denoiser of many layers, on errors that are made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.sensitivity.untrained import untrained

from qua2sedimo.damage import DECIBEL, Features, fit_gain
from qua2sedimo.denoisers import architecture, built_inputs, trace

CONFIG = Path(__file__).parent.parent / "denoisers" / "configs" / "pixart-alpha-512.json"


@pytest.fixture(scope="module")
def known() -> tuple[Features, np.ndarray]:
    """The features of a PixArt-XL's options, and their relative errors but for a common factor [layers, options]: a
    factor of four a bit, and one of up to four by chance."""
    model = architecture(CONFIG)
    features = untrained(trace(model, (), built_inputs(model), parts=True), "wide", folds=0).encoding.damage
    return features, np.exp(features.values[..., 0])


def ranks(
    known: tuple[Features, np.ndarray], records: int, differing: float, interacting: float
) -> Iterator[tuple[float, float]]:
    """Rank correlations, with the quality of unseen configurations, of the fitted model and of the sum of errors, each
    time for other sensitivities of layers e^(differing·z); neighbours interact as no sum of damages tells."""
    features, table = known
    counts, layers = features.offered.sum(axis=1), np.arange(len(table))
    for seed in range(3):
        chance = np.random.default_rng(seed)
        choices = (chance.random((records + 150, len(layers))) * counts).astype(int)
        errors = table[layers, choices]
        damage = errors * np.exp(chance.normal(0, differing, len(layers)))
        neighbours = np.sqrt(damage[:, 1:] * damage[:, :-1]).sum(axis=1)
        quality = -np.log(damage.sum(axis=1) + interacting * neighbours) / DECIBEL
        model, _ = fit_gain(features, choices[:records], quality[:records])
        found = -model.predict(choices[records:]), -errors[records:].sum(axis=1)
        learned, simple = (float(spearmanr(by, quality[records:]).statistic) for by in found)
        yield learned, simple


@pytest.mark.parametrize(("differing", "interacting"), [(0.0, 3.0), (1.0, 3.0), (2.0, 0.0)])
def test_a_few_records_spoil_no_ranking_that_errors_alone_give(
    known: tuple[Features, np.ndarray], differing: float, interacting: float
) -> None:
    """All configurations are of nearly the same quality, so that 25 of them say little of 287 layers."""
    learned, simple = zip(*ranks(known, 25, differing, interacting))
    assert np.mean(learned) > np.mean(simple) - 0.03


def test_many_records_of_layers_that_differ_rank_better_than_errors_alone(known: tuple[Features, np.ndarray]) -> None:
    learned, simple = zip(*ranks(known, 200, 1.0, 0.0))
    assert np.mean(learned) > np.mean(simple) + 0.1


def test_predictions_are_right_on_average_where_all_records_have_the_same_images(
    known: tuple[Features, np.ndarray],
) -> None:
    """What images have in common cannot be told from the level of all records: it was off by up to two decibels."""
    features, table = known
    layers, chance = np.arange(len(table)), np.random.default_rng(0)
    choices = (chance.random((150, len(layers))) * features.offered.sum(axis=1)).astype(int)
    quality = -np.log(table[layers, choices].sum(axis=1)) / DECIBEL
    model, unit = fit_gain(features, choices[:100], quality[:100])
    assert np.mean(-model.predict(choices[100:]) / unit) == pytest.approx(np.mean(quality[100:]), abs=0.1)
